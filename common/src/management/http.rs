// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As much of HTTP/1.1 as a scrape needs: one `GET` in, one reply out; no I/O.

use httparse::{EMPTY_HEADER, Status};

use super::metrics;
use super::protocol::Services;

/// The longest request head taken.
pub(super) const MAX_HEAD_BYTES: usize = 8 << 10;

/// More than browsers and scrapers send.
const MAX_HEADERS: usize = 64;

/// Answers the request that starts `input`, or `None` if its end has not come yet.
pub(super) fn answer(services: &Services, input: &[u8]) -> Option<Vec<u8>> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(input) {
        Ok(Status::Partial) if input.len() < MAX_HEAD_BYTES => None,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Some(error("431 Request Header Fields Too Large"))
        }
        Ok(Status::Complete(_)) => Some(route(
            services,
            request.method.unwrap_or_default(),
            request.path.unwrap_or_default(),
        )),
        Err(_) => Some(error("400 Bad Request")),
    }
}

fn route(services: &Services, method: &str, target: &str) -> Vec<u8> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let with_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return reply("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "", true),
    };
    if path != "/metrics" {
        return error("404 Not Found");
    }
    match metrics::encode(services) {
        Ok(text) => {
            let content_type = format!("Content-Type: {}\r\n", metrics::CONTENT_TYPE);
            reply("200 OK", &content_type, &text, with_body)
        }
        Err(_) => error("500 Internal Server Error"),
    }
}

fn error(status: &str) -> Vec<u8> {
    reply(status, "", "", true)
}

fn reply(status: &str, headers: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let mut reply = head.into_bytes();
    if with_body {
        reply.extend_from_slice(body.as_bytes());
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::super::protocol::tests::services;
    use super::*;

    fn status(input: &[u8]) -> Option<String> {
        let reply = String::from_utf8(answer(&services(), input)?).unwrap();
        assert!(reply.contains("\r\nConnection: close\r\n"), "{reply}");
        Some(reply.lines().next().unwrap().to_owned())
    }

    #[test]
    fn request_gets_the_status_it_deserves() {
        for (input, expected) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                "HTTP/1.1 200 OK",
            ),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
            (
                "POST /metrics HTTP/1.1\r\n\r\n",
                "HTTP/1.1 405 Method Not Allowed",
            ),
            ("\0\0\0", "HTTP/1.1 400 Bad Request"),
            ("GET /metrics HTTP/9.9\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ] {
            assert_eq!(
                status(input.as_bytes()).as_deref(),
                Some(expected),
                "{input:?}"
            );
        }
    }

    #[test]
    fn request_that_is_not_whole_waits_until_it_is_too_long() {
        assert_eq!(status(b""), None);
        assert_eq!(status(b"GET /metrics HTTP/1.1\r\nHost"), None);
        let mut long = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        long.resize(MAX_HEAD_BYTES - 1, b'a');
        assert_eq!(status(&long), None);
        long.push(b'a');
        let too_large = Some("HTTP/1.1 431 Request Header Fields Too Large");
        assert_eq!(status(&long).as_deref(), too_large);
        let many = format!(
            "GET /metrics HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(status(many.as_bytes()).as_deref(), too_large);
    }

    #[test]
    fn reply_to_get_has_the_length_it_says_and_head_has_no_body() {
        for (method, expect_body) in [("GET", true), ("HEAD", false)] {
            let input = format!("{method} /metrics HTTP/1.1\r\n\r\n");
            let reply = String::from_utf8(answer(&services(), input.as_bytes()).unwrap()).unwrap();
            let (head, body) = reply.split_once("\r\n\r\n").unwrap();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.unwrap().parse().unwrap();
            assert!(length > 0);
            assert_eq!(body.len(), if expect_body { length } else { 0 });
            assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"));
        }
    }
}
