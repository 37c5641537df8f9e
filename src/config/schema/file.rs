//! The whole file.

use super::authz::Authz;
use super::check::Check;
use super::data::{ListFile, TableFile};
use super::decode::table;
use super::limiter::Limiter;
use super::rule::{Domain, Rule};
use super::server::{Log, Server};
use super::store::Store;
use super::values::{ByName, List};

table! {
    /// The configuration of tollgate: one file, or a directory whose files are merged.
    File {
        /// The addresses to listen on, and settings of the whole process.
        server: Server,
        /// Where counters are kept, by name. Without any, one memory store is used.
        stores: ByName<Store>,
        /// Named algorithms with their numbers, by name.
        limiters: ByName<Limiter>,
        /// Lists of values in files, by name. Rules match them as `{ list = "NAME" }`.
        lists: ByName<ListFile>,
        /// Tables in files, by name. Domains derive entries from them: an account and its tier from an API key.
        tables: ByName<TableFile>,
        /// Settings of domains, by name. Other domains have the defaults.
        domains: ByName<Domain>,
        /// Which descriptors are matched, and which limiters apply to them. In the order of the file names, then of the file.
        rules: List<Rule>,
        /// How ext_authz, which sends no descriptors, makes entries of a request.
        authz: Authz,
        /// What is logged to standard error. `RUST_LOG` sets the level.
        log: Log,
        /// How the configuration is checked.
        check: Check,
        [unprinted("it has no effect")]
        /// For rate-sync files: accepted, and without effect. `authz.trusted_hops` says which addresses are trusted.
        fastapi: Fastapi,
    }
}

table! {
    /// For rate-sync files: accepted, and without effect.
    Fastapi {
        [unprinted("it has no effect")]
        /// The networks of proxies that rate-sync trusts.
        trusted_proxy_networks: List<String>,
    }
}
