//! Minimal HTTP/1.1: both ends must be able to close a connection where no library would.

use std::io::{self, BufRead, Read};

/// Complete request or response.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) start: String,
    /// Header lines in order, with lower-case names.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Returns the first value of a header, or an empty string.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(header, _)| header == name).map_or("", |(_, value)| value)
    }

    /// Reads a message. Returns an error if it is truncated.
    pub(crate) fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let mut message = Self { start: line(from)?, ..Self::default() };
        loop {
            let line = line(from)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            message.headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        if message.header("transfer-encoding") == "chunked" {
            loop {
                let length = line(from)?;
                let length = usize::from_str_radix(&length, 16).map_err(|_| io::ErrorKind::InvalidData)?;
                exactly(from, length, &mut message.body)?;
                line(from)?;
                if length == 0 {
                    return Ok(message);
                }
            }
        }
        let length = message.header("content-length").parse().unwrap_or(0);
        exactly(from, length, &mut message.body)?;
        Ok(message)
    }

    /// Returns the digest of the parts of a response that the upstream chose: the status, its own
    /// headers and the body.
    pub(crate) fn digest(&self) -> String {
        let own = self.headers.iter().filter(|(name, _)| name.starts_with("x-"));
        digest_of(self.status(), own.map(|(name, value)| (name.as_str(), value.as_str())), &self.body)
    }

    pub(crate) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

/// Returns the digest of a response. Header names are in lower case.
pub(crate) fn digest_of<'a>(status: u16, headers: impl Iterator<Item = (&'a str, &'a str)>, body: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&status.to_be_bytes());
    for (name, value) in headers {
        hasher.update(format!("{name}: {value}\n").as_bytes());
    }
    hasher.update(b"\n").update(body);
    short(&hasher.finalize())
}

/// Returns the digest of a request body.
pub(crate) fn digest(bytes: &[u8]) -> String {
    short(&blake3::hash(bytes))
}

fn short(hash: &blake3::Hash) -> String {
    hash.to_hex()[..16].to_owned()
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match from.take(64 << 10).read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

fn exactly(from: &mut impl Read, length: usize, into: &mut Vec<u8>) -> io::Result<()> {
    match from.take(length as u64).read_to_end(into)? == length {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
