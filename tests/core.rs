//! What the library means, with no socket and no process beside it: semantics, the behaviour of each algorithm,
//! properties that always hold, races of threads, and the fuzz targets over bounded input.

mod support;

mod core {
    mod behaviour;
    mod fuzz;
    mod model;
    mod properties;
    mod races;
    mod semantics;
    mod world;
}
