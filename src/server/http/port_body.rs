//! The body of an answer at a port that speaks HTTP and gRPC.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::server::answer_body::AnswerBody;
use crate::server::grpc::GuardedBody;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum PortBody {
    Http(AnswerBody),
    Grpc(GuardedBody),
}

impl Body for PortBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>> {
        match self.get_mut() {
            Self::Http(body) => Pin::new(body).poll_frame(cx).map_err(Box::from),
            Self::Grpc(body) => Pin::new(body).poll_frame(cx).map_err(Box::from),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Grpc(body) => body.size_hint(),
        }
    }
}
