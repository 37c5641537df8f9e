//! Shared by several test binaries: real processes, the service in this process, fixtures and the reference.
//!
//! Helpers of a single binary are modules of that binary.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub mod binary;
pub mod dice;
pub mod fixtures;
pub mod processes;
pub mod reference;
pub mod service;
