//! Configuration: the meaning of a file, the errors about a broken one, and the effects of a reload.

mod support;

mod config {
    mod errors;
    mod meaning;
    mod reload;
}
