//! The wire format of a call of `script.lua` for a batch of plans.
//!
//! [`encode`] writes plans as a command, and [`decode`] reads its reply. The layout is described at the head of the
//! script.

mod error;
mod keys;
mod reply;
mod request;
mod shapes;

pub(super) use self::error::CommandError;
pub(super) use self::keys::Keys;
pub(super) use self::reply::{Reply, decode};
pub(super) use self::request::{SCRIPT, ScriptRef, batch_size, encode, is_encodable};
