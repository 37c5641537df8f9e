//! Protobuf, read in place and written straight into a gRPC frame, field by field.
//!
//! A decision already holds what a response contains. Building the generated message first takes an allocation for each
//! string and list, and a pass to measure them. The generated types define the encoding: a test compares both.

use std::cell::Cell;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, decode_varint};

/// Takes the next byte: the key of a field with a number below 16.
#[inline]
pub(super) fn byte(rest: &mut &[u8]) -> Option<u8> {
    rest.split_off_first().copied()
}

/// Takes length-delimited bytes.
#[inline]
pub(super) fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    rest.split_off(..length)
}

/// Takes a length-delimited UTF-8 string.
#[inline]
pub(super) fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(part(rest)?).ok()
}

/// The largest buffer that a thread keeps for reuse. Only a refusal with a custom body needs more.
const MAX_BUFFER_BYTES: usize = 4 << 10;

thread_local! {
    /// Buffer for frames whose length is not yet known. The frame is copied out of it, in one allocation of its size.
    static FRAME_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Writes a message in the protobuf wire format, behind the header of its frame.
pub(super) struct MessageWriter(Vec<u8>);

impl MessageWriter {
    /// Returns the frame of the message that `write` writes.
    pub(super) fn frame(write: impl FnOnce(&mut Self)) -> Bytes {
        let mut writer = Self(FRAME_BUFFER.take());
        writer.0.clear();
        // Not compressed, then the length.
        writer.0.extend_from_slice(&[0; 5]);
        write(&mut writer);
        let length = u32::try_from(writer.0.len() - 5).expect("an answer is far from 4 GiB");
        writer.0[1..5].copy_from_slice(&length.to_be_bytes());
        let frame = Bytes::copy_from_slice(&writer.0);
        if writer.0.capacity() <= MAX_BUFFER_BYTES {
            FRAME_BUFFER.set(writer.0);
        }
        frame
    }

    /// Writes what the generated types encode.
    pub(super) fn generated(&mut self, message: &impl Message) {
        message.encode(&mut self.0).expect("the buffer grows");
    }

    /// Writes a number. Proto3 omits zero.
    pub(super) fn number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.key(field, WireType::Varint);
            self.varint(number);
        }
    }

    /// Writes a number of an `optional` field, which is present even when zero.
    pub(super) fn oneof_number(&mut self, field: u32, number: u64) {
        self.key(field, WireType::Varint);
        self.varint(number);
    }

    /// Writes a string or bytes. Proto3 omits an empty one.
    pub(super) fn text(&mut self, field: u32, text: &[u8]) {
        if !text.is_empty() {
            self.oneof_text(field, text);
        }
    }

    /// Writes a string of a `oneof`, which is present even when empty.
    pub(super) fn oneof_text(&mut self, field: u32, text: &[u8]) {
        self.key(field, WireType::LengthDelimited);
        self.varint(text.len() as u64);
        self.0.extend_from_slice(text);
    }

    /// Writes a nested message.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        self.key(field, WireType::LengthDelimited);
        let start = self.0.len();
        // Nearly every length takes one byte; for a longer one the message is moved.
        self.0.push(0);
        write(self);
        let length = self.0.len() - start - 1;
        match u8::try_from(length) {
            Ok(short @ ..0x80) => self.0[start] = short,
            _ => {
                let mut longer = Vec::with_capacity(10);
                varint(length as u64, |byte| longer.push(byte));
                self.0.splice(start..=start, longer);
            }
        }
    }

    fn key(&mut self, field: u32, kind: WireType) {
        self.varint(u64::from(field << 3 | kind as u32));
    }

    fn varint(&mut self, number: u64) {
        varint(number, |byte| self.0.push(byte));
    }
}

/// Base 128, least significant group first; every byte but the last has its highest bit set.
#[inline]
fn varint(mut number: u64, mut push: impl FnMut(u8)) {
    while number >= 0x80 {
        push(number as u8 | 0x80);
        number >>= 7;
    }
    push(number as u8);
}
