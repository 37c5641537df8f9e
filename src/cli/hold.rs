//! Runs a command under a lease: renews it, passes signals on, and ends the command before a lease that is lost.
//!
//! ```text
//!   granted        renewed     renewed                        not renewed                              the lease ends
//!      |---- 1/3 ----|--- 1/3 ---|--- 1/3: tries again and again ---|-- SIGTERM ---------- SIGKILL --------|
//! ```

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::termios::tcgetpgrp;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::workers::ApiClient;

/// The part of a lease after which it is renewed, and that is left for the command to stop after SIGTERM.
const THIRD: u32 = 3;

/// The part of a lease that is left when the command gets SIGKILL.
const TWENTIETH: u32 = 20;

/// The longest time between two attempts to renew.
const RETRY: Duration = Duration::from_secs(1);

/// The time to stop after SIGTERM if the lease has ended already.
const GRACE: Duration = Duration::from_millis(500);

/// The exit codes of shells for a command that is not there, and for one that cannot be run.
const NOT_FOUND_CODE: u8 = 127;
const NOT_RUN_CODE: u8 = 126;

/// Runs commands under leases of one server.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) client: ApiClient,
    /// Whether a command is ended when its lease is lost.
    pub(super) kill: bool,
}

/// What becomes of a lease while its command runs.
#[derive(Debug)]
enum LeaseNews {
    /// It is held until then.
    Until(Instant),
    /// It has ended; its fate.
    Ended(String),
}

impl Holder {
    /// Runs a command, and returns its exit code. `held` is its lease with the time until it ends, counted from
    /// `granted`; `length` is how long it is held each time. The lease is released in the end.
    pub(super) async fn run(
        &self,
        command: &[OsString],
        held: Option<(String, Duration)>,
        length: Option<Duration>,
        granted: Instant,
        signals: Signals,
    ) -> anyhow::Result<ExitCode> {
        let (program, arguments) = command.split_first().expect("there is a command");
        let ended_children = signal(SignalKind::child())?;
        let code = match Command::new(program).args(arguments).spawn() {
            Ok(child) => {
                let running = Running { child, ended_children };
                self.watch(running, held.clone(), length, granted, signals).await?
            }
            Err(error) => {
                eprintln!("tollgate: cannot run {}: {error}", program.display());
                ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND_CODE } else { NOT_RUN_CODE })
            }
        };
        if let Some((lease, _)) = held
            && let Err(error) = self.client.release(&lease).await
        {
            eprintln!("tollgate: the lease was not released, and ends by itself: {error:#}");
        }
        Ok(code)
    }

    async fn watch(
        &self,
        mut running: Running,
        held: Option<(String, Duration)>,
        length: Option<Duration>,
        granted: Instant,
        mut signals: Signals,
    ) -> anyhow::Result<ExitCode> {
        let pid = Pid::from_child(&running.child);
        let send = |signal| {
            // It fails only if the command has ended.
            let _ = kill_process(pid, signal);
        };
        let (news, mut received) = mpsc::channel(4);
        let mut deadlines = None;
        if let Some((lease, ends_in)) = held {
            let length = length.unwrap_or(ends_in);
            deadlines = Some(Deadlines::of(granted + ends_in, length));
            tokio::spawn(keep(self.client.clone(), lease, length, granted + ends_in, news));
        }
        let mut warned = false;
        loop {
            let stop_at = deadlines.as_ref().filter(|_| self.kill).map(|deadlines| deadlines.next);
            tokio::select! {
                ended = running.end() => return Ok(exit_code(ended?)),
                caught = signals.next() => {
                    if caught.is_passed_on() {
                        send(caught.signal);
                    }
                }
                Some(heard) = received.recv() => match heard {
                    LeaseNews::Until(end) => {
                        let known = deadlines.as_ref().map_or(Duration::ZERO, |deadlines| deadlines.length);
                        deadlines = Some(Deadlines::of(end, length.unwrap_or(known)));
                    }
                    LeaseNews::Ended(fate) => {
                        let what = if self.kill { "the command is stopped" } else { "the command runs on" };
                        eprintln!("tollgate: the lease is not held any more ({fate}): {what}");
                        if self.kill {
                            send(Signal::TERM);
                            deadlines = Some(Deadlines::ended());
                        }
                    }
                },
                () = sleep_until(stop_at.unwrap_or_else(Instant::now)), if stop_at.is_some() => {
                    let Some(deadlines) = &mut deadlines else { continue };
                    if !std::mem::replace(&mut warned, true) {
                        eprintln!("tollgate: the lease could not be renewed: the command is stopped before it ends");
                    }
                    send(deadlines.signal);
                    deadlines.advance();
                }
            }
        }
    }
}

/// A command that runs. The process driver of tokio, which would wait for it too, costs every request of a server that
/// is built with it.
#[derive(Debug)]
struct Running {
    child: Child,
    /// Since before it was started.
    ended_children: SignalStream,
}

impl Running {
    /// Waits for its end.
    async fn end(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            self.ended_children.recv().await;
        }
    }
}

/// When a command whose lease is not renewed gets which signal.
#[derive(Debug)]
struct Deadlines {
    length: Duration,
    next: Instant,
    signal: Signal,
    kill: Instant,
}

impl Deadlines {
    /// Those of a lease that ends then.
    fn of(end: Instant, length: Duration) -> Self {
        Self { length, next: end - length / THIRD, signal: Signal::TERM, kill: end - length / TWENTIETH }
    }

    /// Those of a lease that has ended, whose command has its SIGTERM.
    fn ended() -> Self {
        let kill = Instant::now() + GRACE;
        Self { length: Duration::ZERO, next: kill, signal: Signal::KILL, kill }
    }

    /// After SIGTERM comes SIGKILL, again each [`GRACE`].
    fn advance(&mut self) {
        self.next = if self.signal == Signal::TERM { self.kill } else { Instant::now() + GRACE };
        self.signal = Signal::KILL;
    }
}

/// Renews a lease until it has ended or nobody listens.
async fn keep(client: ApiClient, lease: String, length: Duration, mut end: Instant, news: mpsc::Sender<LeaseNews>) {
    let mut next = end - length + length / THIRD;
    let mut failed = false;
    loop {
        sleep_until(next).await;
        // The lease counts from a moment after this one.
        let began = Instant::now();
        let heard = match timeout(length / THIRD, client.renew(&lease, length)).await {
            Ok(Ok(Ok(ends_in))) => {
                end = began + ends_in;
                next = began + length / THIRD;
                failed = false;
                LeaseNews::Until(end)
            }
            Ok(Ok(Err(fate))) => LeaseNews::Ended(fate),
            Ok(Err(_)) | Err(_) if Instant::now() >= end => LeaseNews::Ended("not renewed".to_owned()),
            Ok(Err(error)) => {
                if !std::mem::replace(&mut failed, true) {
                    eprintln!("tollgate: the lease is not renewed yet, trying again: {error:#}");
                }
                next = Instant::now() + RETRY.min(length / TWENTIETH);
                continue;
            }
            Err(_) => {
                next = Instant::now();
                continue;
            }
        };
        let ended = matches!(heard, LeaseNews::Ended(_));
        if news.send(heard).await.is_err() || ended {
            return;
        }
    }
}

/// The exit code of a command as shells have it: 128 and the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The signals that are passed on to the command.
#[derive(Debug)]
pub(super) struct Signals(Vec<(Signal, SignalStream)>);

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct CaughtSignal {
    signal: Signal,
}

impl Signals {
    /// Starts to listen. From then on none of these signals ends this process.
    pub(super) fn listen() -> std::io::Result<Self> {
        let passed_on = [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        let streams = passed_on.into_iter().map(|(name, kind)| Ok((name, signal(kind)?)));
        Ok(Self(streams.collect::<std::io::Result<_>>()?))
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> CaughtSignal {
        std::future::poll_fn(|cx| {
            for (name, stream) in &mut self.0 {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(CaughtSignal { signal: *name });
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

impl CaughtSignal {
    /// The exit code of a process that it ends.
    pub(super) fn exit_code(self) -> ExitCode {
        ExitCode::from(u8::try_from(128 + self.signal.as_raw()).unwrap_or(1))
    }

    /// Whether the command needs it from us: a terminal sends Ctrl-C and Ctrl-\ to every process in its foreground, and
    /// twice would end a command that asks "really?".
    fn is_passed_on(self) -> bool {
        let by_keyboard = matches!(self.signal, Signal::INT | Signal::QUIT);
        !(by_keyboard && tcgetpgrp(std::io::stdin()).is_ok_and(|foreground| foreground == getpgrp()))
    }
}
