//! The versions of the program.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use crate::support::binary::{Served, both};
use crate::support::service::{Rls, descriptor, question};
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitResponse;

/// The environment variable with the path of the version before.
const PROGRAM_BEFORE: &str = "TOLLGATE_BEFORE";

/// A version of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one before.
    Before,
    /// The one of this tree.
    Now,
}

impl Version {
    fn program(self) -> PathBuf {
        match self {
            Version::Before => {
                env::var_os(PROGRAM_BEFORE).expect("scripts/fleet sets it to the path of the version before").into()
            }
            Version::Now => env!("CARGO_BIN_EXE_tollgate").into(),
        }
    }

    /// Checks a configuration. Returns what is wrong with it.
    pub fn complaint(self, toml: &str) -> Option<String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tollgate.toml");
        std::fs::write(&file, toml).expect("a file in the test's directory");
        let output = Command::new(self.program()).arg("check").arg(&file).output().expect("the program runs");
        (!output.status.success()).then(|| both(&output))
    }

    /// Serves a configuration.
    pub async fn serve(self, toml: &str) -> Instance {
        let served = Served::start_program(&self.program(), toml, &[]).ready();
        let rls = Rls::at(&served.grpc).await;
        Instance { version: self, served, rls }
    }
}

/// A running instance.
pub struct Instance {
    pub version: Version,
    pub served: Served,
    pub rls: Rls,
}

impl Instance {
    /// Asks for this number of units.
    pub async fn ask(&self, entries: &[(&str, &str)], units: u64) -> RateLimitResponse {
        let descriptor = RateLimitDescriptor { hits_addend: Some(units), ..descriptor(entries) };
        self.rls.ask(question("edge", [descriptor])).await
    }

    /// The units left.
    pub async fn left(&self, entries: &[(&str, &str)]) -> u32 {
        self.ask(entries, 0).await.statuses[0].limit_remaining
    }

    /// Gives units back.
    pub async fn refund(&self, entries: &[(&str, &str)], units: u64) {
        let refund = RateLimitDescriptor { hits_addend: Some(units), is_negative_hits: true, ..descriptor(entries) };
        self.rls.ask(question("edge", [refund])).await;
    }

    /// Settles a lease with this number of units.
    pub async fn settle(&self, lease: &str, units: u64) {
        self.ask(&[("settle", lease)], units).await;
    }

    /// Gives a lease back.
    pub async fn release(&self, lease: &str) {
        self.rls.one(&[("release", lease)]).await;
    }
}
