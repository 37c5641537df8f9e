//! Messages as gRPC frames them.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Makes the frame of a refusal for a request that cannot be read.
pub(super) type RefusalFrame = fn() -> Bytes;

/// Frames a message: the flag for no compression, four bytes of length, the encoding.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a refusal is a few bytes"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

#[cfg(test)]
pub(super) mod fixtures;
