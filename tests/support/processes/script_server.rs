//! A server that runs the script of the Redis store in a Lua of another version than Redis has.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use super::process::bound;
use super::{installed, project};

/// A server on a port. Each client has a process and data of its own.
#[derive(Debug)]
pub struct ScriptServer {
    /// The port that it listens on.
    pub port: u16,
}

impl ScriptServer {
    /// Starts a server with the Lua of this version, such as `5.4`. None when it is not installed.
    pub fn start(version: &str) -> Option<Self> {
        let lua = installed::program(&format!("lua{version}"))?;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        // Ends with the test process, as its processes do when their clients are gone.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let lua = lua.clone();
                thread::spawn(move || serve(&lua, client));
            }
        });
        Some(Self { port })
    }
}

/// Runs the server's process on a connection, until the client closes it.
fn serve(lua: &Path, client: TcpStream) {
    client.set_nodelay(true).expect("an option of a socket");
    let output = client.try_clone().expect("a second handle of a socket");
    let mut command = bound(lua, "KILL");
    command.arg(project().join("tests/support/processes/script_server.lua"));
    command.stdin(Stdio::from(OwnedFd::from(client))).stdout(Stdio::from(OwnedFd::from(output)));
    let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", lua.display()));
    // The handles of the connection are the process's alone.
    drop(command);
    process.wait().expect("it was started");
}
