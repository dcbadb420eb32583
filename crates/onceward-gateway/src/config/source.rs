//! Setting sources: flag, environment, file and default. Each value has its origin.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use toml::de::{DeTable, DeValue};

/// Document that `config --print` prints. It is also the lowest layer, so that the printed defaults
/// are the effective ones.
pub(crate) const DEFAULTS: &str = include_str!("defaults.toml");

/// Settings without a default, which are commented out in [`DEFAULTS`].
const WITHOUT_DEFAULT: [&str; 7] = [
    "policy.wait",
    "upstream",
    "policy.derive_window",
    "policy.principal",
    "policy.credential_headers",
    "policy.upstream_timeout",
    "policy.request_body",
];

/// Variables that configure logging, before any setting is read.
const OF_THE_LOG: [&str; 2] = [crate::logging::FILTER, crate::logging::FORMAT];

/// Settings of a section that may also be at the top level, beside `upstream`.
const ALSO_AT_THE_TOP: [(&str, &str); 2] =
    [("forward_key", "policy.forward_key"), ("upstream_max_age", "limits.upstream_max_age")];

const PREFIX: &str = "ONCEWARD_";

/// Origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not set.
    Default,
    /// Line of a file.
    File {
        /// Name of the file, as given.
        path: String,
        /// Line number, from 1.
        line: usize,
    },
    /// Environment variable.
    Variable(String),
    /// Command-line flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}, line {line}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Error in a setting: it is unknown, or its value is invalid. `Display` gives one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    setting: String,
    what: String,
    origin: Option<Origin>,
}

impl ConfigError {
    pub(crate) fn new(setting: impl Into<String>, what: impl Into<String>, origin: Origin) -> Self {
        Self { setting: setting.into(), what: what.into(), origin: Some(origin) }
    }

    /// Creates an error for a missing setting, which has no origin.
    pub(crate) fn missing(setting: &str, what: &str) -> Self {
        Self { setting: setting.into(), what: what.into(), origin: None }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever a value contains.
        let what = self.what.replace(['\n', '\r'], " ");
        match &self.origin {
            Some(origin) => write!(f, "{}: {what} ({origin})", self.setting),
            None => write!(f, "{}: {what}", self.setting),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Value before it is parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// Text from a flag or the environment, where commas separate a list.
    Plain(String),
    /// TOML string.
    Text(String),
    /// TOML integer, in decimal digits.
    Number(String),
    /// TOML boolean.
    Bool(bool),
    /// TOML array.
    List(Vec<Item>),
    /// TOML type that no setting has.
    Other(&'static str),
}

impl Item {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Self::Number(number.to_string()),
                Err(_) => Self::Other("integer"),
            },
            DeValue::Boolean(flag) => Self::Bool(*flag),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect()),
            other => Self::Other(other.type_str()),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) | Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(digits) => f.write_str(digits),
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::List(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Other(kind) => write!(f, "a TOML {kind}"),
        }
    }
}

/// Value with its origin, under the name that the user wrote.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) name: String,
    pub(crate) item: Item,
    pub(crate) origin: Origin,
}

/// Values by path of their setting.
pub(crate) type Layer = BTreeMap<String, Value>;

/// Content of a configuration file.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) settings: Layer,
    /// Layer of each `[[route]]`, with the paths of `[policy]`, and `path`.
    pub(crate) routes: Vec<Layer>,
}

/// Reads [`DEFAULTS`].
pub(crate) fn defaults() -> Layer {
    let mut layer = match File::parse(DEFAULTS, "the defaults") {
        Ok(file) => file.settings,
        Err(invalid) => unreachable!("a test reads the defaults: {invalid}"),
    };
    layer.values_mut().for_each(|value| value.origin = Origin::Default);
    layer
}

/// Paths of all settings.
static KNOWN: LazyLock<Vec<String>> = LazyLock::new(|| {
    let table = DeTable::parse(DEFAULTS).unwrap_or_else(|error| unreachable!("a test reads the defaults: {error}"));
    let mut paths: Vec<String> = WITHOUT_DEFAULT.map(String::from).into();
    for (name, value) in table.get_ref() {
        match value.get_ref().as_table() {
            Some(section) => paths.extend(section.keys().map(|key| format!("{}.{}", name.get_ref(), key.get_ref()))),
            None => paths.push(name.get_ref().to_string()),
        }
    }
    paths
});

impl File {
    /// Parses a TOML document, without validating values.
    pub(crate) fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        let origin = |at: usize| Origin::File { path: path.into(), line: line_of(text, at) };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            ConfigError::new("not TOML", error.message(), origin(at))
        })?;
        let known: &[String] = &KNOWN;
        let mut file = Self::default();
        for (name, value) in table.get_ref() {
            let (name, at) = (name.get_ref().as_ref(), name.span().start);
            if name == "route" {
                file.routes = routes(value.get_ref(), known, &origin, at)?;
                continue;
            }
            let is_section = known.iter().any(|path| path.starts_with(&format!("{name}.")));
            match value.get_ref() {
                DeValue::Table(section) if is_section => {
                    for (key, value) in section {
                        let path = format!("{name}.{}", key.get_ref());
                        let at = key.span().start;
                        check_known(&path, Some(name), known, || origin(at))?;
                        file.put(path.clone(), path, value.get_ref(), origin(at));
                    }
                }
                _ if is_section => {
                    return Err(ConfigError::new(
                        name,
                        format!("is a section; write [{name}] above its settings"),
                        origin(at),
                    ));
                }
                value => {
                    let path = ALSO_AT_THE_TOP.iter().find(|(top, _)| *top == name).map_or(name, |(_, path)| path);
                    check_known(path, None, known, || origin(at))?;
                    file.put(path.into(), name.into(), value, origin(at));
                }
            }
        }
        Ok(file)
    }

    fn put(&mut self, path: String, name: String, value: &DeValue<'_>, origin: Origin) {
        self.settings.insert(path, Value { name, item: Item::of(value), origin });
    }
}

fn routes(
    value: &DeValue<'_>,
    known: &[String],
    origin: &impl Fn(usize) -> Origin,
    at: usize,
) -> Result<Vec<Layer>, ConfigError> {
    let not_tables = || ConfigError::new("route", "is a list of tables; write [[route]] above each", origin(at));
    let mut routes = Vec::new();
    for route in value.as_array().ok_or_else(not_tables)?.iter() {
        let mut layer = Layer::new();
        for (key, value) in route.get_ref().as_table().ok_or_else(not_tables)? {
            let at = key.span().start;
            let path = match key.get_ref().as_ref() {
                "path" => "path".to_owned(),
                key => {
                    let path = format!("policy.{key}");
                    check_known(&path, Some("policy"), known, || origin(at)).map_err(|mut invalid| {
                        invalid.setting = format!("route.{key}");
                        invalid
                    })?;
                    path
                }
            };
            let name = format!("route.{}", key.get_ref());
            layer.insert(path, Value { name, item: Item::of(value.get_ref()), origin: origin(at) });
        }
        if !layer.contains_key("path") {
            return Err(ConfigError::new(
                "route",
                "has no path; write path = \"/orders\", for example",
                origin(route.span().start),
            ));
        }
        routes.push(layer);
    }
    Ok(routes)
}

/// Returns known variables as a layer, and the names of unknown ones.
pub(crate) fn environment(variables: impl Iterator<Item = (String, String)>) -> (Layer, Vec<String>) {
    let known: &[String] = &KNOWN;
    let mut layer = Layer::new();
    let mut unknown = Vec::new();
    for (name, text) in variables.filter(|(name, _)| name.starts_with(PREFIX)) {
        let top = ALSO_AT_THE_TOP.iter().find(|(top, _)| variable(top) == name).map(|(_, path)| *path);
        let path = known.iter().find(|path| variable(path) == name || top == Some(path.as_str()));
        match path {
            Some(path) => {
                let value = Value { name: path.clone(), item: Item::Plain(text), origin: Origin::Variable(name) };
                layer.insert(path.clone(), value);
            }
            None if OF_THE_LOG.contains(&name.as_str()) => {}
            None => unknown.push(name),
        }
    }
    unknown.sort();
    (layer, unknown)
}

fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_uppercase())
}

/// Rejects an unknown setting, and lists the settings of its section.
fn check_known(
    path: &str,
    section: Option<&str>,
    known: &[String],
    origin: impl FnOnce() -> Origin,
) -> Result<(), ConfigError> {
    if known.iter().any(|known| known == path) {
        return Ok(());
    }
    let of_section = |known: &&String| match section {
        Some(section) => known.split_once('.').is_some_and(|(of, _)| of == section),
        None => true,
    };
    let mut names: Vec<&str> = known
        .iter()
        .filter(of_section)
        .map(|known| match section {
            Some(section) => &known[section.len() + 1..],
            None => known.split('.').next().unwrap_or(known),
        })
        .collect();
    names.dedup();
    let what = match section {
        Some(section) => format!("unknown setting; [{section}] has {}", names.join(", ")),
        None => format!("unknown setting; there are {}, route", names.join(", ")),
    };
    // A quoted name may contain any character.
    Err(ConfigError::new(path.escape_debug().to_string(), what, origin()))
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}
