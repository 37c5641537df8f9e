//! The no-op service on hyper: the generated service, served directly by hyper's HTTP/2, with mimalloc. It shows the
//! cost of the protocol alone.

#![expect(unreachable_pub, reason = "a benchmark: no other crate uses it")]

mod noop;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        noop::announce(listener.local_addr()?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(1024);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = TowerToHyperService::new(noop::service());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    })
}
