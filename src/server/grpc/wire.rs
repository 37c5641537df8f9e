//! Reads what a message is made of where it lies, and writes a message straight into its frame, field by field.
//!
//! What an answer says is in the decision already. Making the generated message of it first takes an allocation for
//! every text and list, and a walk to weigh them before they are written. The generated types are the meaning: a test
//! holds both to the same bytes.

use std::cell::Cell;

use bytes::Bytes;
use prost::encoding::{WireType, decode_varint};

/// The key of a field of a low number, which is one byte; or whatever else is next.
#[inline]
pub(super) fn byte(rest: &mut &[u8]) -> Option<u8> {
    rest.split_off_first().copied()
}

/// What has its length before it.
#[inline]
pub(super) fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    rest.split_off(..length)
}

/// The same, as a text.
#[inline]
pub(super) fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(part(rest)?).ok()
}

/// The most bytes that a thread keeps to write in. Only a refusal with a body of its own takes more.
const MAX_BUFFER_BYTES: usize = 4 << 10;

thread_local! {
    /// Where frames are written before their length is known. What is sent is copied out of it, so that a frame is one
    /// allocation of the right size.
    static FRAME_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A frame in the making.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// The frame of the message that `write` writes.
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

    /// A number. Proto3 says zero by saying nothing.
    pub(super) fn number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.key(field, WireType::Varint);
            self.varint(number);
        }
    }

    /// A text, or bytes. Proto3 says an empty one by saying nothing.
    pub(super) fn text(&mut self, field: u32, text: &[u8]) {
        if !text.is_empty() {
            self.chosen_text(field, text);
        }
    }

    /// A text that was chosen among several kinds of value, and so is said even when it is empty.
    pub(super) fn chosen_text(&mut self, field: u32, text: &[u8]) {
        self.key(field, WireType::LengthDelimited);
        self.varint(text.len() as u64);
        self.0.extend_from_slice(text);
    }

    /// A message in the message.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        self.key(field, WireType::LengthDelimited);
        let start = self.0.len();
        // Nearly every length is one byte; what was written moves for a longer one.
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

/// Seven bits a byte, the lowest first; all but the last have the highest bit.
#[inline]
fn varint(mut number: u64, mut push: impl FnMut(u8)) {
    while number >= 0x80 {
        push(number as u8 | 0x80);
        number >>= 7;
    }
    push(number as u8);
}
