//! Configuration: what a file means, what is said about a broken one, and what a reload changes.

mod support;

mod config {
    mod errors;
    mod meaning;
    mod reload;
}
