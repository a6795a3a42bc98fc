// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The thread as a whole, over real sockets.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::connection::MAX_LINE_BYTES;
use super::protocol::tests::services;
use super::server::MAX_CLIENTS;
use super::*;

/// Longer than anything here may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    dir: TempDir,
    services: Services,
    address: SocketAddr,
    management: Option<Management>,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let services = services();
        let metrics = "127.0.0.1:0".parse().unwrap();
        let sockets = ManagementSockets::bind(Some(&dir.path().join("c")), Some(&metrics)).unwrap();
        let Some(MetricsAddress::Tcp(address)) = sockets.metrics_address() else {
            panic!("no TCP address");
        };
        let management = Some(sockets.spawn(services.clone(), || ()).unwrap());
        Self {
            dir,
            services,
            address,
            management,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    fn control(&self) -> Client {
        Client::new(UnixStream::connect(self.path()).unwrap())
    }

    fn http(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn stop(&mut self) -> Duration {
        let start = Instant::now();
        self.management.take().unwrap().stop();
        start.elapsed()
    }
}

struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    fn send(&self, bytes: &[u8]) {
        self.reader.get_ref().write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.send(format!("{request}\n").as_bytes());
        self.receive()
    }

    fn is_served(&mut self) -> bool {
        self.ask(&json!({"id": 99, "method": "version"}))["result"]["version"] == "1.2.3"
    }

    fn is_closed(&mut self) -> bool {
        match self.reader.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn exchange(mut stream: TcpStream, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn control_socket_is_private_and_removed_at_stop() {
    let mut fixture = Fixture::new();
    let mode = std::fs::metadata(fixture.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    fixture.stop();
    assert!(!fixture.path().exists());
}

#[test]
fn control_serves_two_clients_in_turn_and_pipelined() {
    let fixture = Fixture::new();
    let (mut first, mut second) = (fixture.control(), fixture.control());
    for id in 0..20 {
        for client in [&mut first, &mut second] {
            let reply = client.ask(&json!({"id": id, "method": "echo", "params": {"n": id}}));
            assert_eq!(reply, json!({"id": id, "result": {"n": id}}));
        }
    }
    // More than one turn holds.
    let lines: String = (0..500)
        .map(|id| json!({"id": id, "method": "version"}).to_string() + "\n")
        .collect();
    first.send(lines.as_bytes());
    assert!(second.is_served());
    for id in 0..500 {
        assert_eq!(first.receive()["id"], id);
    }
}

#[test]
fn control_line_in_pieces_is_one_request() {
    let fixture = Fixture::new();
    let mut client = fixture.control();
    for piece in [&b"{\"id\":1,\"met"[..], b"hod\":\"ver", b"sion\"}", b"\r\n"] {
        client.send(piece);
        assert!(fixture.control().is_served(), "served meanwhile");
    }
    assert_eq!(client.receive()["id"], 1);
}

#[test]
fn control_client_that_shuts_down_writing_still_gets_its_replies() {
    let fixture = Fixture::new();
    let mut client = fixture.control();
    client.send(b"{\"id\":1,\"method\":\"version\"}\n{\"id\":2,\"method\":\"version\"}\n{\"id\":3");
    client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.receive()["id"], 1);
    assert_eq!(client.receive()["id"], 2);
    assert!(client.is_closed(), "half a request is none");
}

#[test]
fn control_garbage_is_answered_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut client = fixture.control();
    client.send(b"garbage\n\n\xff\xff\n");
    assert_eq!(client.receive()["error"]["code"], -32700);
    assert_eq!(client.receive()["error"]["code"], -32700);
    assert!(client.is_served());
}

#[test]
fn control_line_of_the_longest_length_is_served_and_a_longer_one_ends_the_connection() {
    let fixture = Fixture::new();
    let mut client = fixture.control();
    let mut line = b"{\"id\":1,\"method\":\"version\"}".to_vec();
    line.resize(MAX_LINE_BYTES, b' ');
    client.send(&line);
    client.send(b"\n");
    assert_eq!(client.receive()["id"], 1);

    line.push(b' ');
    client.send(&line);
    client.send(b"\n");
    let reply = client.receive();
    assert_eq!(
        (&reply["error"]["code"], &reply["id"]),
        (&json!(-32600), &Value::Null)
    );
    assert!(client.is_closed());
    assert!(fixture.control().is_served());
}

#[test]
fn control_endless_line_is_cut_off() {
    let fixture = Fixture::new();
    let client = fixture.control();
    let chunk = [b'x'; 4096];
    let failed = (0..1_000_000).any(|_| client.reader.get_ref().write_all(&chunk).is_err());
    assert!(failed, "4 GB were taken without an end of line");
    assert!(fixture.control().is_served());
}

#[test]
fn control_client_that_never_reads_holds_up_nobody() {
    let mut fixture = Fixture::new();
    let deaf = fixture.control();
    deaf.send(b"{\"method\":\"big\"}\n".repeat(100).as_slice());
    let mut client = fixture.control();
    for _ in 0..100 {
        assert!(client.is_served());
    }
    assert!(fixture.stop() < PATIENCE);
}

#[test]
fn control_big_reply_arrives_whole() {
    let fixture = Fixture::new();
    let reply = fixture.control().ask(&json!({"id": 1, "method": "big"}));
    assert_eq!(reply["result"].as_str().unwrap().len(), 4 << 20);
}

#[test]
fn control_full_house_closes_the_quietest() {
    let fixture = Fixture::new();
    let mut clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| fixture.control()).collect();
    for client in &mut clients {
        assert!(client.is_served());
    }
    // The first is no longer the quietest, the second is.
    assert!(clients[0].is_served());
    let mut late = fixture.control();
    assert!(late.is_served());
    assert!(clients[1].is_closed());
    assert!(clients[0].is_served() && clients[2].is_served());
    // The metrics door has room of its own.
    let http: Vec<TcpStream> = (0..2 * MAX_CLIENTS).map(|_| fixture.http()).collect();
    assert!(exchange(fixture.http(), b"GET /metrics HTTP/1.1\r\n\r\n").contains("200 OK"));
    assert!(late.is_served() && clients[0].is_served());
    drop(http);
}

#[test]
fn control_stats_and_metrics_show_the_same() {
    let fixture = Fixture::new();
    let queue = fixture.services.stats().queue(1);
    queue.record(0, 4096, true, 10_000);
    let stats = fixture.control().ask(&json!({"id": 1, "method": "stats"}));
    assert_eq!(stats["result"]["operations"][0]["bytes"], 4096);
    let metrics = exchange(fixture.http(), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let line = r#"ringside_bytes_total{device="blk",queue="1",op="read"} 4096"#;
    assert!(metrics.lines().any(|got| got == line), "{metrics}");
}

#[test]
fn metrics_over_a_unix_socket_are_served() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m");
    let address = path.to_str().unwrap().parse().unwrap();
    let sockets = ManagementSockets::bind(None, Some(&address)).unwrap();
    assert_eq!(sockets.metrics_address(), Some(address));
    let _management = sockets.spawn(services(), || ()).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(
        reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("# EOF\n"),
        "{reply}"
    );
}

#[test]
fn metrics_bad_requests_are_answered_and_closed() {
    let fixture = Fixture::new();
    let long = format!(
        "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
        "a".repeat(100_000)
    );
    for (request, status) in [
        (&b"\x16\x03\x01\x02\x00garbage\r\n\r\n"[..], "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (
            b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "405",
        ),
        (long.as_bytes(), "431"),
    ] {
        let reply = exchange(fixture.http(), request);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status}: {reply}"
        );
    }
}

#[test]
fn metrics_half_request_holds_up_nobody_and_ends() {
    let fixture = Fixture::new();
    let mut half = fixture.http();
    half.write_all(b"GET /metrics HTT").unwrap();
    assert!(exchange(fixture.http(), b"GET /metrics HTTP/1.1\r\n\r\n").contains("# EOF"));
    assert!(fixture.control().is_served());
    // Closed by its deadline.
    assert_eq!(half.read(&mut [0]).unwrap(), 0);
}

#[test]
fn idle_thread_never_wakes_up() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c");
    let sockets = ManagementSockets::bind(Some(&path), None).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let on_start = move || sender.send(rustix::thread::gettid()).unwrap();
    let _management = sockets.spawn(services(), on_start).unwrap();
    let thread = receiver.recv().unwrap().as_raw_nonzero();
    // Clients that are silent, between requests or within one, and one that does not take its
    // reply are no work either.
    let connect = || Client::new(UnixStream::connect(&path).unwrap());
    let (mut silent, half, deaf) = (connect(), connect(), connect());
    half.send(b"{\"method\":");
    deaf.send(b"{\"method\":\"big\"}\n");
    assert!(silent.is_served());

    // Time on a CPU, time spent waiting for one, number of times it was given one.
    let schedule =
        || std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    // Let the thread go back to sleep first.
    thread::sleep(Duration::from_millis(500));
    let before = schedule();
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(schedule(), before);
}

#[test]
fn stop_under_load_is_prompt() {
    let mut fixture = Fixture::new();
    let stopping = Arc::new(AtomicBool::new(false));
    let path = fixture.path();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (stopping, path) = (Arc::clone(&stopping), path.clone());
            thread::spawn(move || {
                let mut served = 0_u64;
                while !stopping.load(Ordering::Relaxed) {
                    let Ok(stream) = UnixStream::connect(&path) else {
                        break;
                    };
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let lines = b"{\"method\":\"stats\"}\n".repeat(50);
                    if (&stream).write_all(&lines).is_err() {
                        continue;
                    }
                    let replies = BufReader::new(stream).lines().take(50);
                    served += u64::try_from(replies.map_while(Result::ok).count()).unwrap();
                }
                served
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let took = fixture.stop();
    stopping.store(true, Ordering::Relaxed);
    let served: u64 = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .sum();
    assert!(served > 0);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(!fixture.path().exists());
}

#[test]
fn spawn_without_sockets_starts_nothing() {
    let sockets = ManagementSockets::bind(None, None).unwrap();
    let management = sockets.spawn(services(), || panic!("started")).unwrap();
    assert!(management.thread.is_none());
}

#[test]
fn ctl_prints_results_and_fails_on_errors() {
    let fixture = Fixture::new();
    let result = ctl(&fixture.path(), "echo", &["size=5".to_owned()]).unwrap();
    assert_eq!(result, "{\n  \"size\": 5\n}");
    let error = ctl(&fixture.path(), "nope", &[]).unwrap_err();
    assert_eq!(error.to_string(), "unknown method (error -32601)");
    let error = ctl(Path::new("/nonexistent/socket"), "help", &[]).unwrap_err();
    assert!(matches!(error, CtlError::Connect { .. }), "{error}");
}
