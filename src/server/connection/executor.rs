//! Runs the streams of an HTTP/2 connection.

use std::task::{Context, Waker};

use hyper::rt::Executor;
use tokio::task::coop::cooperative;

/// Polls a stream where it arrives, in the task of its connection, and spawns only what waits: a decision in memory is
/// there at the first poll, and a task for it costs 2500 instructions.
///
/// A stream that waits is polled again by its own task, so no wake-up is lost. One that arrives when the connection has
/// used up its turn is not polled here, so that a connection with many streams lets others run.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct EagerExecutor;

impl<F> Executor<F> for EagerExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(cooperative(stream));
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::spawn(stream);
        }
    }
}
