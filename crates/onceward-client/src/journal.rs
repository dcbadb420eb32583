//! Journal of requests without a definite outcome, on disk: one file per request. A file is written
//! and synced before the first byte is sent, and removed when the outcome is definite.
//!
//! Credentials are not written: `Authorization`, `Cookie` and `Proxy-Authorization`, and headers
//! that are marked as sensitive. Resume through a client that adds them, by default headers or a
//! middleware.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{Extensions, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use reqwest::{Request, Response, Url};
use reqwest_middleware::ClientWithMiddleware;
use serde::{Deserialize, Serialize};

use crate::intent::{Digest, Intent, Keyed};
use crate::intents::{Intents, REMEMBERED};

/// Version of the files that are written.
const VERSION: u32 = 1;
const LOCK: &str = "lock";
/// File extension of requests without an outcome.
const OPEN: &str = "json";
/// File extension of ended names.
const ENDED: &str = "ended";

/// Directory of requests without an outcome. Clones share it; only one process at a time can open
/// it.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    /// Held for the lifetime of the journal.
    _lock: File,
    open: Mutex<BTreeMap<String, Entry>>,
    /// Files of ended names, oldest first.
    ended: Mutex<VecDeque<(SystemTime, PathBuf)>>,
    intents: Intents,
}

/// File format of an ended intent: its name keeps its key for a day.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    version: u32,
    key: String,
    intent: String,
    first_sent: String,
    /// Seconds since 1970 by this machine's clock.
    ended: u64,
}

/// File format of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    version: u32,
    key: String,
    intent: Option<String>,
    first_sent: String,
    method: String,
    url: String,
    /// Values in base64.
    headers: Vec<(String, String)>,
    /// Body in base64.
    body: String,
    digest: String,
}

/// Marks a request that an earlier run began.
#[derive(Clone, Debug)]
pub(crate) struct Resumed(pub(crate) Keyed);

impl Journal {
    /// Opens a directory, creates it if it does not exist, and reads its files.
    ///
    /// # Errors
    ///
    /// Another process has opened it, it cannot be written, or a file in it cannot be read. Such a
    /// file is never skipped, because its request may have executed.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, JournalError> {
        let folder = folder.as_ref();
        let failed = |what: &str, error: io::Error| JournalError::new(folder, what, Some(error));
        fs::create_dir_all(folder).map_err(|error| failed("cannot be made", error))?;
        let lock = File::create(folder.join(LOCK)).map_err(|error| failed("cannot be written", error))?;
        lock.try_lock()
            .map_err(|_| JournalError::new(folder, "is used by another process; give each its own", None))?;
        let (intents, mut open, mut ended) = (Intents::default(), BTreeMap::new(), Vec::new());
        for file in fs::read_dir(folder).map_err(|error| failed("cannot be read", error))? {
            let path = file.map_err(|error| failed("cannot be read", error))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(OPEN) => {
                    let entry: Entry = read(&path, |entry: &Entry| entry.version)?;
                    if let Some(name) = &entry.intent {
                        intents.restore(name, entry.keyed(Digest::unequal()), None);
                    }
                    open.insert(entry.key.clone(), entry);
                }
                Some(ENDED) => ended.push((read(&path, |end: &End| end.version)?, path)),
                _ => {}
            }
        }
        ended.sort_by_key(|(end, _)| end.ended);
        let now = now();
        let mut files = VecDeque::new();
        for (end, path) in ended {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(end.ended);
            // If the clock was set back, an end looks recent, and its name is remembered for
            // longer.
            let ago = now.duration_since(at).unwrap_or_default();
            if ago < REMEMBERED {
                let digest = Digest::unequal();
                let keyed = Keyed { key: end.key, first_sent: end.first_sent, maybe_executed: true, digest };
                intents.restore(&end.intent, keyed, Some(ago));
            }
            files.push_back((at, path));
        }
        let (open, ended) = (Mutex::new(open), Mutex::new(files));
        Ok(Self { shared: Arc::new(Shared { folder: folder.into(), _lock: lock, open, ended, intents }) })
    }

    /// Returns the requests without an outcome, begun by an earlier run that did not learn it, or
    /// by this one.
    pub fn pending(&self) -> Vec<Pending> {
        self.shared.open.lock().values().map(|entry| Pending { entry: entry.clone() }).collect()
    }

    /// Removes a request whose outcome a person has looked up, and releases its name.
    ///
    /// # Errors
    ///
    /// The directory cannot be written.
    pub async fn settle(&self, pending: &Pending) -> Result<(), JournalError> {
        let Entry { key, intent, .. } = &pending.entry;
        self.forget(key).await?;
        if let Some(name) = intent {
            self.shared.intents.release(name, key);
        }
        Ok(())
    }

    /// Returns the named intents of this journal.
    pub(crate) fn intents(&self) -> &Intents {
        &self.shared.intents
    }

    /// Writes a request durably.
    pub(crate) async fn write(
        &self,
        request: &Request,
        keyed: &Keyed,
        intent: Option<String>,
    ) -> Result<(), JournalError> {
        if self.shared.open.lock().contains_key(&keyed.key) {
            return Ok(());
        }
        let Some(entry) = Entry::of(request, keyed, intent) else {
            let what = "takes no body that is streamed, for it could not be sent again; give it as bytes";
            return Err(JournalError::new(&self.shared.folder, what, None));
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let path = shared.path(&entry.key, OPEN);
            let written = serde_json::to_vec(&entry).map_err(io::Error::from);
            let written = written.and_then(|text| shared.write(&path, &text));
            written.map_err(|error| JournalError::new(&path, "cannot be written, so nothing was sent", Some(error)))?;
            shared.open.lock().insert(entry.key.clone(), entry);
            Ok(())
        })
        .await
    }

    /// Records durably that a named intent ended, and removes its request.
    pub(crate) async fn end(&self, name: &str, keyed: &Keyed) -> Result<(), JournalError> {
        let now = now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let end = End {
            version: VERSION,
            key: keyed.key.clone(),
            intent: name.to_owned(),
            first_sent: keyed.first_sent.clone(),
            ended: seconds,
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let path = shared.path(&end.key, ENDED);
            // A replay does not prolong it.
            if path.exists() {
                return Ok(());
            }
            let written = serde_json::to_vec(&end).map_err(io::Error::from).and_then(|text| shared.write(&path, &text));
            written.map_err(|error| JournalError::new(&path, "cannot be written", Some(error)))?;
            shared.ended.lock().push_back((now, path));
            shared.remove_old_ends(now);
            Ok(())
        })
        .await?;
        self.forget(&keyed.key).await
    }

    /// Removes a request whose outcome is definite. If the process crashes before that is durable,
    /// its response is requested once more.
    pub(crate) async fn forget(&self, key: &str) -> Result<(), JournalError> {
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        blocking(move || {
            let path = shared.path(&key, OPEN);
            let removed = match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => shared.sync(),
            };
            removed.map_err(|error| JournalError::new(&path, "cannot be taken away", Some(error)))?;
            shared.open.lock().remove(&key);
            Ok(())
        })
        .await
    }
}

/// Reads a file of the journal. One that is damaged is never skipped, since its request may have
/// executed.
fn read<T: serde::de::DeserializeOwned>(path: &Path, version: impl Fn(&T) -> u32) -> Result<T, JournalError> {
    let text = fs::read(path).map_err(|error| JournalError::new(path, "cannot be read", Some(error)))?;
    let parsed: T = serde_json::from_slice(&text).map_err(|error| {
        let what = "is damaged; look whether its request was executed, then move it away";
        JournalError::new(path, what, Some(error.into()))
    })?;
    match version(&parsed) {
        VERSION => Ok(parsed),
        _ => Err(JournalError::new(path, "was written by another version of this program", None)),
    }
}

#[allow(clippy::disallowed_methods, reason = "ends outlive the process, and so its monotonic clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

async fn blocking(work: impl FnOnce() -> Result<(), JournalError> + Send + 'static) -> Result<(), JournalError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(JournalError {
            what: "the journal was left in the middle".into(),
            source: Some(io::Error::other(error)),
        }),
    }
}

impl Shared {
    /// Returns the file of a key, which may have a slash in it.
    fn path(&self, key: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", &blake3::hash(key.as_bytes()).to_hex()[..32]))
    }

    /// Writes a file durably and atomically.
    fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        // Readable by its owner only, as all temporary files are.
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        self.sync()
    }

    /// Removes the files of names that ended longer than a day ago. If a removal fails, the next
    /// call retries it.
    fn remove_old_ends(&self, now: SystemTime) {
        let mut ended = self.ended.lock();
        while let Some((at, path)) = ended.front() {
            if now.duration_since(*at).unwrap_or_default() < REMEMBERED {
                return;
            }
            let _ = fs::remove_file(path);
            ended.pop_front();
        }
    }

    /// Syncs the directory, which makes file names durable.
    fn sync(&self) -> io::Result<()> {
        match cfg!(unix) {
            true => File::open(&self.folder)?.sync_all(),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

impl Entry {
    /// Returns `None` if the body is streamed.
    fn of(request: &Request, keyed: &Keyed, intent: Option<String>) -> Option<Self> {
        let body = match request.body() {
            Some(body) => body.as_bytes()?,
            None => &[],
        };
        let is_kept = |name: &HeaderName, value: &HeaderValue| {
            !value.is_sensitive() && ![AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name)
        };
        let headers = request.headers().iter().filter(|(name, value)| is_kept(name, value));
        Some(Self {
            version: VERSION,
            key: keyed.key.clone(),
            intent,
            first_sent: keyed.first_sent.clone(),
            method: request.method().to_string(),
            url: request.url().to_string(),
            headers: headers.map(|(name, value)| (name.to_string(), BASE64.encode(value.as_bytes()))).collect(),
            body: BASE64.encode(body),
            digest: keyed.digest.hex(),
        })
    }

    /// Returns the key. The request was journaled, so it may have been sent.
    fn keyed(&self, digest: Digest) -> Keyed {
        Keyed { key: self.key.clone(), first_sent: self.first_sent.clone(), maybe_executed: true, digest }
    }

    fn request(&self) -> Option<Request> {
        let mut request = Request::new(Method::from_bytes(self.method.as_bytes()).ok()?, Url::parse(&self.url).ok()?);
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(&BASE64.decode(value).ok()?).ok()?;
            request.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).ok()?, value);
        }
        *request.body_mut() = Some(BASE64.decode(&self.body).ok()?.into());
        Some(request)
    }
}

/// Request without an outcome.
#[derive(Clone)]
pub struct Pending {
    entry: Entry,
}

impl Pending {
    /// Returns the URL of the request.
    pub fn url(&self) -> &str {
        &self.entry.url
    }

    /// Returns the name of its intent, if it has one.
    pub fn intent(&self) -> Option<&str> {
        self.entry.intent.as_deref()
    }

    /// Sends the request with its key, and retries until its outcome is definite. The client has an
    /// [`Idempotent`](crate::Idempotent) over the same journal, and adds the credentials, which are
    /// not written.
    ///
    /// # Errors
    ///
    /// Those of any request of that client.
    pub async fn resume(&self, client: &ClientWithMiddleware) -> reqwest_middleware::Result<Response> {
        let damaged =
            || JournalError { what: "the request cannot be made again from the journal".into(), source: None };
        let request = self.entry.request().ok_or_else(|| reqwest_middleware::Error::middleware(damaged()))?;
        let mut extensions = Extensions::new();
        extensions.insert(Resumed(self.entry.keyed(Digest::of(&request))));
        if let Some(name) = &self.entry.intent {
            extensions.insert(Intent::new(name));
        }
        client.execute_with_extensions(request, &mut extensions).await
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("url", &self.entry.url)
            .field("intent", &self.entry.intent)
            .finish_non_exhaustive()
    }
}

/// Error of a journal that cannot be read or written. `Display` gives one line, with the file and
/// the fix.
#[derive(Debug)]
pub struct JournalError {
    what: String,
    source: Option<io::Error>,
}

impl JournalError {
    fn new(path: &Path, what: &str, source: Option<io::Error>) -> Self {
        Self { what: format!("{} {what}", path.display()), source }
    }
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for JournalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
