//! The whole service in this process, called over real sockets at each of its doors.

#![expect(
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test: no other crate uses it, it waits for real servers"
)]

mod support;

mod doors {
    mod admin;
    mod authz;
    mod bodies;
    mod bounds;
    mod compressed;
    mod doubt;
    mod forms;
    mod generated;
    mod headers;
    mod hostile;
    mod http;
    mod listen;
    mod mistakes;
    mod repeats;
    mod request_bodies;
    mod reset;
    mod rls;
    mod targets;
    mod workers;
    mod workers_grpc;
}
