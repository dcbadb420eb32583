//! A connection that says bytes, and what comes back on it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// A connection that says bytes and reads answers.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// Header lines in their order, names in lower case.
pub(crate) type Lines = Vec<(String, Vec<u8>)>;

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Lines,
    pub(crate) body: Vec<u8>,
    /// Of a chunked body.
    pub(crate) trailers: Lines,
    /// Whether the body came to its announced end.
    pub(crate) is_whole: bool,
}

impl Answer {
    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(header, _)| header == name).map(|(_, value)| value.as_slice()).collect()
    }

    /// The only value of a header, or nothing.
    pub(crate) fn one(&self, name: &str) -> &str {
        match self.all(name).as_slice() {
            [] => "",
            [value] => std::str::from_utf8(value).unwrap(),
            more => panic!("{name} came {} times", more.len()),
        }
    }

    /// The same without a header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| header != name);
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// A clone for another thread to write with.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.get_ref().try_clone().unwrap()
    }

    /// One line, without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    pub(crate) fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        self.stream.read_exact(&mut buffer).unwrap();
        buffer
    }

    /// Whether the other side has closed; waited for.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }

    pub(crate) fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.say(&request);
        self.answer(request.as_ref().starts_with(b"HEAD"))
    }

    /// The next answer, interim ones left out.
    pub(crate) fn answer(&mut self, is_to_head: bool) -> Answer {
        loop {
            let answer = self.head();
            match answer.status {
                100 | 102..=199 => {}
                101 | 204 | 304 => return Answer { is_whole: true, ..answer },
                _ if is_to_head => return Answer { is_whole: true, ..answer },
                _ => return self.body(answer),
            }
        }
    }

    /// The status line and the headers alone.
    pub(crate) fn head(&mut self) -> Answer {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {status:?}")).parse().unwrap();
        Answer { status, headers: headers(&mut self.stream), ..Answer::default() }
    }

    fn body(&mut self, mut answer: Answer) -> Answer {
        let length = answer.all("content-length").first().map(|value| String::from_utf8_lossy(value).parse().unwrap());
        if answer.one("transfer-encoding") == "chunked" {
            let chunks = chunked(&mut self.stream);
            (answer.body, answer.trailers, answer.is_whole) = chunks;
        } else if let Some(length) = length {
            let mut body = (&mut self.stream).take(length);
            // A reset is as much of an end as another.
            let _ = body.read_to_end(&mut answer.body);
            answer.is_whole = answer.body.len() as u64 == length;
        } else {
            answer.is_whole = self.stream.read_to_end(&mut answer.body).is_ok();
        }
        answer
    }
}

/// Header lines up to the empty one.
pub(crate) fn headers(from: &mut impl BufRead) -> Lines {
    let mut headers = Vec::new();
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line).unwrap();
        let line = line.trim_ascii_end();
        let Some(at) = line.iter().position(|byte| *byte == b':') else { return headers };
        headers.push((String::from_utf8_lossy(&line[..at]).to_lowercase(), line[at + 1..].trim_ascii().to_vec()));
    }
}

/// A chunked body, its trailers, and whether it came to its end.
pub(crate) fn chunked(from: &mut impl BufRead) -> (Vec<u8>, Lines, bool) {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).is_err() {
            return (body, Vec::new(), false);
        }
        match usize::from_str_radix(line.trim(), 16) {
            Ok(0) => return (body, headers(from), true),
            Ok(length) => {
                let mut chunk = vec![0; length + 2];
                if from.read_exact(&mut chunk).is_err() {
                    return (body, Vec::new(), false);
                }
                body.extend_from_slice(&chunk[..length]);
            }
            Err(_) => return (body, Vec::new(), false),
        }
    }
}
