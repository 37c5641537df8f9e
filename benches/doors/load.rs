//! Load by h2load: a number of requests of one kind, none of which may fail.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::server::Server;

/// Requests of a turn.
pub const REQUESTS: u32 = 100_000;

/// The arguments of h2load.
pub struct Load {
    arguments: Vec<String>,
    path: String,
    http: bool,
    frame: Option<PathBuf>,
}

impl Load {
    /// Calls a gRPC method with one framed message.
    pub fn grpc(path: &str, frame: &[u8]) -> Self {
        let file = std::env::temp_dir().join(format!("tollgate-bench-{}-{:x}", std::process::id(), checksum(frame)));
        std::fs::File::create(&file)
            .and_then(|mut file| file.write_all(frame))
            .expect("there is a temporary directory");
        let headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"].map(String::from);
        let data = [String::from("-d"), file.to_str().expect("a path in ASCII").into()];
        let shape = ["-p", "h2c", "-c", "4", "-m", "50"].map(String::from);
        let arguments = shape.into_iter().chain(headers).chain(data).collect();
        Self { arguments, path: path.into(), http: false, frame: Some(file) }
    }

    /// Sends requests to the plain HTTP door as Envoy does.
    pub fn http(server: &Server, path: &str, headers: &[(String, String)]) -> Self {
        assert!(server.http.is_some(), "there is an HTTP door");
        let shape = ["--h1", "-c", "50"].map(String::from);
        let headers = headers.iter().flat_map(|(name, value)| ["-H".to_owned(), format!("{name}: {value}")]);
        Self {
            arguments: shape.into_iter().chain(headers).collect(),
            path: format!("/authz/envoy{path}"),
            http: true,
            frame: None,
        }
    }

    /// Runs the load once against a server.
    pub fn run(&self, server: &Server) {
        let address = if self.http { server.http.expect("it was there") } else { server.grpc };
        let requests = REQUESTS.to_string();
        let output = Command::new("taskset")
            .args(["-c", "1", "h2load", "-t", "1", "-n", requests.as_str()])
            .args(&self.arguments)
            .arg(format!("http://{address}{}", self.path))
            .output()
            .expect("h2load is installed");
        let said = String::from_utf8_lossy(&output.stdout);
        let done = said.contains(&format!("{requests} succeeded, 0 failed"));
        assert!(output.status.success() && done, "{said}{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(frame) = &self.frame {
            drop(std::fs::remove_file(frame));
        }
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
