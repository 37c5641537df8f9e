//! Shared by the targets: doors with their rules and empty counters, and an executor that waits for responses.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::runtime::{Builder, Runtime};
use tollgate::clock::{Clock, ManualClock, Timestamp};
use tollgate::config::{Config, SourceText};
use tollgate::decision::Decision;
use tollgate::descriptor::Request;
use tollgate::engine::Version;
use tollgate::rules::Rules;
use tollgate::server::Http;
use tollgate::server::grpc::Grpc;
use tollgate::service::Service;
use tollgate::settings::Settings;
use tollgate::store::{MemorySettings, Stores};
use tollgate::telemetry::Door;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The doors of a target.
pub struct Doors {
    pub http: Http,
    grpc: Grpc,
    service: Arc<Service>,
    rules: Arc<Rules>,
    settings: Settings,
    clock: ManualClock,
}

impl Doors {
    /// Doors with these rules, given as a configuration file.
    pub fn open(text: &str) -> Self {
        let source = SourceText { name: "fuzz.toml".to_owned(), text: text.to_owned() };
        let config = match Config::read(&[source], &|_| None) {
            Ok(config) => config,
            Err(errors) => panic!("the target's own rules are refused: {errors}"),
        };
        let clock = ManualClock::at(START);
        let rules = Arc::new(Rules::compile(config.book).expect("the target's own rules compile"));
        let version = Version { rules: rules.clone(), stores: stores() };
        let service = Arc::new(Service::new(version, config.server.clone(), Arc::new(clock.clone())));
        let grpc = Grpc::new(service.clone());
        Self { http: Http::new(service.clone()), grpc, service, rules, settings: config.server, clock }
    }

    /// Clears all counters and resets the clock.
    pub fn forget(&self) -> &Self {
        self.clock.set(START);
        self.service.replace(Version { rules: self.rules.clone(), stores: stores() }, self.settings.clone());
        self
    }

    /// The response of the gRPC door to a message.
    pub fn call(&self, method: &str, message: &[u8]) -> Bytes {
        let mut answer = wait(self.grpc.answer_call(method, framed(message)));
        assert_eq!(answer.first(), Some(&0), "it is not compressed");
        answer.split_off(5)
    }

    /// The same of a method that answers what makes no sense with an error, which has no message.
    pub fn call_or_error(&self, method: &str, message: &[u8]) -> Option<Bytes> {
        let mut answer = wait(self.grpc.answer_call(method, framed(message)));
        (!answer.is_empty()).then(|| answer.split_off(5))
    }

    /// The decision on a request, without a door.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        wait(self.service.current().decide(Door::Rls, request))
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Advances the clock.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
}

fn stores() -> Stores {
    Stores::memory(&[MemorySettings { max_memory: 256 << 10, max_keys: None }])
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("it is short"));
    frame.put_slice(message);
    frame.freeze()
}

/// Waits for a future on this thread.
pub fn wait<T>(answer: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: RefCell<Runtime> =
            RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
    }
    RUNTIME.with_borrow(|runtime| runtime.block_on(answer))
}
