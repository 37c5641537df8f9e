//! Generated from `proto/` and committed, so that a build needs no generator; `tests/doors/generated.rs` keeps it
//! true. The modules are the protobuf packages.

#![expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; proto/ documents the messages"
)]

/// All definitions that are served, for reflection.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");

pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("envoy.config.core.v3.rs");
            }
        }
    }
    pub mod extensions {
        pub mod common {
            pub mod ratelimit {
                pub mod v3 {
                    include!("envoy.extensions.common.ratelimit.v3.rs");
                }
            }
        }
    }
    pub mod service {
        pub mod ratelimit {
            pub mod v3 {
                include!("envoy.service.ratelimit.v3.rs");
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            include!("envoy.r#type.v3.rs");
        }
    }
}

pub(super) mod tollgate {
    pub mod v1 {
        include!("tollgate.v1.rs");
    }
}
