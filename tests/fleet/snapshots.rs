//! A memory store's snapshot, written by one version and read by the other.

use super::version::Version;
use crate::support::service::{OK, lease};

const WINDOW: &[(&str, &str)] = &[("use", "window"), ("account", "a")];
const BUCKET: &[(&str, &str)] = &[("use", "bucket"), ("account", "a")];
const SLOT: &[(&str, &str)] = &[("use", "slots"), ("account", "a")];

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_from_one_version_to_the_other_and_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let snapshot = directory.path().join("counters.snapshot");
    let rule = |limiter: &str| {
        format!(
            "[[rules]]\ndomain = 'edge'\nname = '{limiter}'\nmatch = {{ use = '{limiter}' }}\n\
             apply = [{{ limiter = '{limiter}', key = ['account'] }}]\n"
        )
    };
    let configuration = format!(
        "[server]\ngrpc = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsecret = 'for this test'\n\
         drain_delay = '0s'\n[stores.main]\nengine = 'memory'\nsnapshot = '{}'\n\
         [limiters.window]\nalgorithm = 'sliding_window'\nlimit = 9\nwindow = '1d'\n\
         [limiters.bucket]\nalgorithm = 'token_bucket'\nlimit = 9\nwindow = '1d'\n\
         [limiters.slots]\nalgorithm = 'concurrency'\nmax_concurrent = 3\nlease = '1h'\n{}{}{}",
        snapshot.display(),
        rule("window"),
        rule("bucket"),
        rule("slots")
    );
    let mut leases: Vec<String> = Vec::new();
    for (version, left) in [(Version::Before, 9), (Version::Now, 7), (Version::Before, 5), (Version::Now, 3)] {
        let mut instance = version.serve(&configuration).await;
        for entries in [WINDOW, BUCKET] {
            assert_eq!(instance.left(entries).await, left, "{version:?}: {}", instance.served.said());
            assert_eq!(instance.ask(entries, 2).await.overall_code, OK);
        }
        // Each releases the lease that the other took, and takes one.
        if let Some(lease) = leases.pop() {
            assert_eq!(instance.left(SLOT).await, 2, "{version:?}");
            instance.release(&lease).await;
        }
        assert_eq!(instance.left(SLOT).await, 3, "{version:?}");
        leases.push(lease(&instance.rls.one(SLOT).await).expect("a slot is free"));
        instance.served.stop();
    }
}
