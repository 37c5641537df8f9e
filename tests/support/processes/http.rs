//! An HTTP/1.1 client that sends requests and returns responses byte for byte.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::WAIT_TIMEOUT;

/// A request to send.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    /// The header `host`.
    host: &'static str,
}

impl Ask {
    /// A request with this method and target, sent as they are.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: String::new(),
            host: "gateway.test",
        }
    }

    /// Names the server by its loopback address, as programs on its machine do.
    pub fn loopback(self) -> Self {
        Self { host: "127.0.0.1", ..self }
    }

    /// A `GET`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A `POST` without a body.
    pub fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the client's address, as a load balancer in front of the gateway reports it.
    pub fn from(self, address: &str) -> Self {
        self.header("x-forwarded-for", address)
    }

    /// Sets the account.
    pub fn account(self, account: &str) -> Self {
        self.header("x-account", account)
    }

    /// Sets a body without a content type.
    pub fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// Sets a JSON body.
    pub fn json(self, body: &str) -> Self {
        self.body(body).header("content-type", "application/json")
    }

    /// Sends it and leaves the connection open. Dropping the stream disconnects the client.
    pub fn begin(&self, port: u16) -> io::Result<TcpStream> {
        self.begin_on(TcpStream::connect(("127.0.0.1", port))?)
    }

    fn begin_on(&self, mut stream: TcpStream) -> io::Result<TcpStream> {
        stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.method, self.target, self.host);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || self.method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        stream.write_all(format!("{head}\r\n{}", self.body).as_bytes())?;
        Ok(stream)
    }

    /// Sends it and reads the whole response.
    pub fn send(&self, port: u16) -> io::Result<Answer> {
        Answer::read(self.begin(port)?)
    }

    /// Sends it from this loopback address and reads the whole response.
    pub fn send_by(&self, client: Ipv4Addr, port: u16) -> io::Result<Answer> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((client, 0)).into())?;
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        Answer::read(self.begin_on(socket.into())?)
    }
}

/// A response.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// Reads a response until the connection closes.
    pub fn read(mut stream: TcpStream) -> io::Result<Self> {
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        let text = String::from_utf8_lossy(&raw).into_owned();
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {text:?}"));
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(malformed)?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status: status.ok_or_else(malformed)?, headers, body: body.to_owned() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = dechunk(body);
        }
        Ok(answer)
    }

    /// The value of a header.
    ///
    /// # Panics
    ///
    /// If the header occurs more than once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| &**value);
        let value = values.next();
        assert!(values.next().is_none(), "{name} came more than once: {self:?}");
        value
    }

    /// The seconds of `Retry-After`.
    pub fn retry_after(&self) -> Option<u64> {
        self.header("retry-after").map(|seconds| seconds.parse().expect("retry-after is a whole number of seconds"))
    }

    /// The number of `X-RateLimit-Remaining`.
    pub fn remaining(&self) -> Option<u64> {
        self.header("x-ratelimit-remaining").map(|units| units.parse().expect("remaining is a number"))
    }

    /// Checks the status and returns the response.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

fn dechunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some(chunk) = after.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        body.push_str(chunk);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}
