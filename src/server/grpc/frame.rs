//! Messages as gRPC frames them.

use bytes::Bytes;
use prost::Message;

use super::wire::MessageWriter;

/// Makes the frame of a refusal for a request that cannot be read.
pub(super) type RefusalFrame = fn() -> Bytes;

/// Frames a message of the generated types.
pub(super) fn frame(message: &impl Message) -> Bytes {
    MessageWriter::frame(|writer| writer.generated(message))
}

#[cfg(test)]
pub(super) mod fixtures;
