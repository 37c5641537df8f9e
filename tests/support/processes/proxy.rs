//! A faulty network: a proxy in front of a server that delays, holds, drops, closes or refuses connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{ports, until};

/// The current treatment of connections.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    delay: Duration,
    refused: bool,
    held: bool,
    cuts: u64,
    /// How often connections were lost.
    losses: u64,
}

/// A port that forwards to another.
#[derive(Debug)]
pub struct Proxy {
    /// The port that it listens on.
    pub port: u16,
    weather: watch::Sender<Weather>,
    listening: watch::Receiver<bool>,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Forwards to this port, without delay.
    pub fn to(target: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let port = ports::free();
        let (weather, seen) = watch::channel(Weather::default());
        let (open, listening) = watch::channel(false);
        let [accepted, ended] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let counts = [accepted.clone(), ended.clone()];
        runtime.spawn(listen(port, (Ipv4Addr::LOCALHOST, target).into(), seen, open, counts));
        let proxy = Self { port, weather, listening, accepted, ended, runtime: Some(runtime) };
        proxy.awaited(true);
        proxy
    }

    /// Delays every answer; more than one may be in transit.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Holds all data in both directions, like a network that loses every packet: connections stay and are accepted,
    /// and nothing arrives.
    pub fn blackhole(&self) {
        self.weather.send_modify(|weather| weather.held = true);
    }

    /// Drops all data of the connections that there are, in both directions and for good, like a gateway that has
    /// forgotten them: neither side hears of it. New ones work. Returns how many there are.
    pub fn lose(&self) -> usize {
        self.weather.send_modify(|weather| weather.losses += 1);
        self.accepted.load(Ordering::SeqCst) - self.ended()
    }

    /// Closes all connections. New ones are accepted.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Closes all connections and refuses new ones.
    pub fn refuse(&self) {
        self.weather.send_modify(|weather| weather.refused = true);
        self.awaited(false);
    }

    /// Ends all faults: held data arrives, and there is no delay.
    pub fn heal(&self) {
        self.weather.send_modify(|weather| {
            *weather = Weather { cuts: weather.cuts, losses: weather.losses, ..Weather::default() };
        });
        self.awaited(true);
    }

    /// The number of connections that have ended.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    fn awaited(&self, open: bool) {
        until("the proxy listens or stops listening", || *self.listening.borrow() == open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A test may be asynchronous, where blocking on a runtime's shutdown is not allowed.
        self.runtime.take().expect("only taken here").shutdown_background();
    }
}

/// Listens, except while connections are to be refused: without a listener, the kernel refuses them.
async fn listen(
    port: u16,
    target: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    open: watch::Sender<bool>,
    [accepted, ended]: [Arc<AtomicUsize>; 2],
) {
    let seen = weather.clone();
    while weather.wait_for(|weather| !weather.refused).await.is_ok() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is the proxy's");
        open.send_replace(true);
        loop {
            tokio::select! {
                biased;
                _ = weather.wait_for(|weather| weather.refused) => break,
                Ok((client, _)) = listener.accept() => {
                    let (seen, ended) = (seen.clone(), ended.clone());
                    accepted.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        serve(client, target, seen).await;
                        ended.fetch_add(1, Ordering::SeqCst);
                    });
                }
            }
        }
        drop(listener);
        open.send_replace(false);
    }
}

/// Forwards a connection until it is cut or either side closes.
async fn serve(client: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let relayed = weather.clone();
    let cuts = weather.borrow().cuts;
    tokio::select! {
        _ = weather.wait_for(|weather| weather.refused || weather.cuts != cuts) => {}
        () = relay(client, target, relayed) => {}
    }
}

/// Forwards both directions until either side closes.
async fn relay(client: TcpStream, target: SocketAddr, weather: watch::Receiver<Weather>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Both fail only on a closed connection, which the next read reports.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = carry(from_client, to_server, weather.clone(), |_| Duration::ZERO) => {}
        () = carry(from_server, to_client, weather, |weather| weather.delay) => {}
    }
}

/// Forwards one direction. Each piece of data leaves when its own delay is over, independent of earlier ones.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    weather: watch::Receiver<Weather>,
    delay: impl Fn(&Weather) -> Duration,
) {
    let (arrived, mut leaving) = mpsc::unbounded_channel();
    let mut released = weather.clone();
    let losses = weather.borrow().losses;
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            // A packet of the startup stays whole: PgBouncer refuses parts of one.
            buffer.reserve(16 << 10);
            if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
                return;
            }
            let due = Instant::now() + delay(&weather.borrow());
            if arrived.send((due, buffer.split().freeze())).is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = leaving.recv().await {
            sleep_until(due).await;
            let lost = match released.wait_for(|weather| !weather.held || weather.losses != losses).await {
                Ok(weather) => weather.losses != losses,
                Err(_) => return,
            };
            if !lost && to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
