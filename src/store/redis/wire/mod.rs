//! What plans and answers look like on the wire: one call of `script.lua` for a batch of plans.
//!
//! It knows no connection: [`encode`] makes a command of plans and [`decode`] makes answers of its reply. The layout is
//! told at the head of the script.

mod keys;
mod problem;
mod question;
mod reply;
mod shapes;

pub(super) use self::keys::Keys;
pub(super) use self::problem::Problem;
pub(super) use self::question::{Named, can_be_asked, encode, fitting};
pub(super) use self::reply::decode;

/// The script that decides.
pub(super) const SCRIPT: &str = include_str!("../script.lua");
