//! The real program: its command line and its behaviour while it serves.

mod support;

mod program {
    mod cli;
    mod drain;
    mod notices;
    mod observability;
    mod on_redis;
    mod operator;
    mod pages;
    mod reload_live;
    mod restart;
    mod secrets;
}
