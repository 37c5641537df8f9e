//! A tonic server that decides nothing: the cost of a rate limit service written as in tonic's examples, with tonic's
//! own transport and the system's allocator.

#![expect(unreachable_pub, reason = "a benchmark: no other crate uses it")]

mod noop;

use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
        noop::announce(incoming.local_addr()?);
        Server::builder().add_service(noop::service()).serve_with_incoming(incoming).await?;
        Ok(())
    })
}
