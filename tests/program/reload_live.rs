//! The real program while its configuration files change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::Code;

use crate::support::processes::{Ask, Process, WAIT_TIMEOUT, ports, until};
use crate::support::service::{Rls, descriptor, question};

const TAKEN: &str = "configuration applied";
const REFUSED: &str = "configuration rejected";

/// The program, serving a file or directory.
struct Live {
    process: Process,
    grpc: u16,
    http: u16,
}

impl Live {
    /// Starts it. `write` writes the configuration with the given lines of `[server]`, which set the addresses.
    fn start(directory: &TempDir, place: &str, write: impl FnOnce(&str)) -> Self {
        let (grpc, http) = (ports::free(), ports::free());
        write(&format!("[server]\ngrpc = '127.0.0.1:{grpc}'\nhttp = '127.0.0.1:{http}'\nadmin = 'off'\n"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["serve", "--config", place]).current_dir(directory.path());
        let process = Process::start("tollgate", &mut command, directory.path())
            .ready(|| Ask::get("/readyz").send(http).is_ok_and(|answer| answer.status == 200));
        Self { process, grpc, http }
    }

    fn said(&self, words: &str) -> usize {
        self.process.log().matches(words).count()
    }

    fn status(&self, account: &str) -> u16 {
        Ask::get("/authz/envoy/").account(account).send(self.http).expect("it answers").status
    }

    /// Resident memory, in KiB.
    fn resident(&self) -> i64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The number of open files.
    fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("it lives").count()
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("a file in the test's directory");
}

/// Replaces a file by a rename, as careful editors do.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    write(&beside, text);
    fs::rename(beside, path).expect("renamed");
}

fn login(limit: u32) -> String {
    format!(
        "[limiters.login]\nalgorithm = 'sliding_window'\nlimit = {limit}\nwindow = '1h'\n\
         [[rules]]\ndomain = 'edge'\nname = 'login'\napply = [{{ limiter = 'login', key = ['account'] }}]\n\
         [authz]\ndomain = 'edge'\n[authz.entries]\naccount = {{ header = 'x-account' }}\n"
    )
}

#[test]
fn a_swap_of_a_mounted_volume_and_of_its_secret_is_one_reload_each() {
    let directory = tempfile::tempdir().expect("a directory");
    let (conf, secrets) = (directory.path().join("conf"), directory.path().join("secrets"));
    let mount = |volume: &Path, version: &str, name: &str, text: &str| {
        fs::create_dir_all(volume.join(version)).expect("a directory");
        write(&volume.join(version).join(name), text);
        let before = fs::read_link(volume.join("..data"));
        symlink(version, volume.join("..data_tmp")).expect("a link");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("renamed");
        match before {
            Ok(before) => fs::remove_dir_all(volume.join(before)).expect("removed"),
            Err(_) => symlink(Path::new("..data").join(name), volume.join(name)).expect("a link"),
        }
    };
    let mut server = String::new();
    let live = Live::start(&directory, "conf", |listens| {
        server = format!("{listens}secret = '${{file:{}/key}}'\n", secrets.display());
        mount(&secrets, "..first", "key", "sixteen characters or more");
        mount(&conf, "..first", "app.toml", &format!("{server}{}", login(1)));
    });
    assert_eq!([live.status("ada"), live.status("ada")], [200, 429]);
    mount(&conf, "..second", "app.toml", &format!("{server}{}", login(2)));
    until("the second version is in use", || live.said(TAKEN) == 1);
    assert_eq!([live.status("ada"), live.status("ada")], [200, 429], "one was used before");
    mount(&secrets, "..second", "key", "another sixteen characters");
    until("the second secret is in use", || live.said("all counters start at zero") == 1);
    assert_eq!([live.status("ada"), live.status("ada")], [200, 200]);
    mount(&conf, "..third", "app.toml", "[limiters");
    until("it is refused", || live.said(REFUSED) == 1);
    assert_eq!(live.said("conf/app.toml:1: "), 1, "{}", live.process.log());
    assert_eq!(Ask::get("/readyz").send(live.http).expect("it answers").status, 200);
    mount(&conf, "..fourth", "app.toml", &format!("{server}mode = 'shadow'\n{}", login(2)));
    until("the kill switch is thrown", || live.said(TAKEN) == 3);
    assert_eq!(live.status("ada"), 200, "it is admitted");
    assert_eq!((live.said(TAKEN), live.said(REFUSED)), (3, 1), "each swap was looked at once");
}

#[test]
fn sighup_reloads_and_ends_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tollgate.toml");
    let live = Live::start(&directory, "tollgate.toml", |listens| write(&file, &format!("{listens}{}", login(1))));
    live.process.signal("-HUP");
    until("nothing has changed", || live.said("configuration unchanged") == 1);
    let text = fs::read_to_string(&file).expect("it is there").replace("limit = 1", "limit = 2");
    replace(&file, &text);
    live.process.signal("-HUP");
    until("it is taken", || live.said(TAKEN) == 1);
    assert_eq!([live.status("ada"), live.status("ada"), live.status("ada")], [200, 200, 429]);
}

const RELOADS: usize = 200;
const WARM: usize = 60;
const ACCOUNTS: usize = 400;
const LIMIT: usize = 20;

/// The changing part of the configuration: a rule that shows the version, and enough rules for a leak to be seen.
fn turn(number: usize) -> String {
    let others: String = (0..300)
        .map(|other| {
            format!(
                "[limiters.other_{other}]\nalgorithm = 'token_bucket'\nlimit = {}\nwindow = '1m'\n\
                 [[rules]]\ndomain = 'others'\nname = 'other_{other}'\nmatch = {{ other = '{other}' }}\n\
                 apply = [{{ limiter = 'other_{other}', key = ['account'] }}]\n",
                number + other + 1
            )
        })
        .collect();
    format!("[[rules]]\ndomain = 'turns'\nname = 'turn'\nmatch = {{ turn = '{number}' }}\naction = 'deny'\n{others}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_reloads_under_load_fail_no_request_and_let_none_too_many_pass() {
    let directory = tempfile::tempdir().expect("a directory");
    let conf = directory.path().join("conf");
    let turning = conf.join("turn.toml");
    let live = Live::start(&directory, "conf", |listens| {
        fs::create_dir(&conf).expect("a directory");
        write(&conf.join("app.toml"), &format!("{listens}{}", login(LIMIT as u32)));
        write(&turning, &turn(0));
    });
    let rls = Rls::at(format_args!("127.0.0.1:{}", live.grpc)).await;
    let done = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|first| {
            let (rls, done) = (rls.clone(), done.clone());
            tokio::spawn(async move {
                let mut passed: BTreeMap<usize, usize> = BTreeMap::new();
                let (mut sent, mut refused) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    let account = (first + sent * 7) % ACCOUNTS;
                    // Fails on any error of transport or gRPC.
                    let answer = rls.one(&[("account", &account.to_string())]).await;
                    match answer.overall_code() {
                        Code::Ok => *passed.entry(account).or_default() += 1,
                        Code::OverLimit => refused += 1,
                        Code::Unknown => panic!("no answer: {answer:?}"),
                    }
                    sent += 1;
                }
                (passed, sent, refused)
            })
        })
        .collect();

    let bad = ["[limiters", "[limiters.login]\nlimit = 0\n", "[[rules]]\ndomain = 'x'\n", "a = '${file:missing}'\n"];
    let (mut refused, mut warm) = (0, (0, 0));
    for number in 1..=RELOADS {
        if number % 4 == 0 {
            refused += 1;
            let before = live.said(REFUSED);
            replace(&turning, &format!("{}{}", turn(number), bad[refused % bad.len()]));
            live.process.signal("-HUP");
            until("it is refused", || live.said(REFUSED) > before);
        } else {
            replace(&turning, &turn(number));
            // Most reloads are requested, to keep the test short; the others are found by watching.
            if number % 10 > 0 {
                live.process.signal("-HUP");
            }
            let turned = async {
                while turns(&rls, number).await != Code::OverLimit {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(WAIT_TIMEOUT, turned)
                .await
                .unwrap_or_else(|_| panic!("version {number} is never in use"));
        }
        if number == WARM {
            warm = (live.resident(), live.files());
        }
    }
    let grown = live.resident() - warm.0;
    done.store(true, Ordering::Relaxed);
    let mut passed: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut sent, mut over) = (0, 0);
    for asking in asking {
        let (mine, all, refused) = asking.await.expect("every answer is an answer");
        mine.into_iter().for_each(|(account, times)| *passed.entry(account).or_default() += times);
        (sent, over) = (sent + all, over + refused);
    }
    let taken = live.said(TAKEN);
    println!("{taken} taken, {refused} refused, {sent} sent, {over} over the limit; memory grew by {grown} KiB");
    assert_eq!(taken, RELOADS - RELOADS / 4);
    assert!(over > 0 && passed.values().all(|times| *times <= LIMIT), "{passed:?}");
    assert_eq!(sent, over + passed.values().sum::<usize>());
    // Memory varies by ten MiB. A hundred leaked versions would be five times that.
    assert!(grown < 24 << 10, "memory grew by {grown} KiB over {} reloads", RELOADS - WARM);
    until("no file is left open", || live.files() <= warm.1);
}

/// Whether this version is in use.
async fn turns(rls: &Rls, number: usize) -> Code {
    let descriptor = descriptor(&[("turn", &number.to_string())]);
    rls.ask(question("turns", [descriptor])).await.overall_code()
}
