use std::fmt;

use axum::http::StatusCode;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use crate::Refusal;

const ITEM_CHARS_MAX: usize = 100;
const QTY_MAX: u32 = 1000;
/// Upper bound on the characters of the input that an error repeats.
const ECHO_CHARS_MAX: usize = 40;

/// Validated new order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    item: String,
    qty: u32,
}

impl NewOrder {
    /// Parses an order from JSON. The error describes the invalid part.
    ///
    /// ```
    /// let order = orders::NewOrder::parse(br#"{"item": " tea ", "qty": 2}"#).unwrap();
    /// assert_eq!((order.item(), order.qty()), ("tea", 2));
    /// ```
    pub fn parse(json: &[u8]) -> Result<Self, Refusal> {
        let Fields(fields) = serde_json::from_slice(json).map_err(|error| {
            let what = if error.is_data() { "not a JSON object" } else { "not JSON" };
            let detail = format!("the body is {what} ({error}): send one like {{\"item\": \"tea\", \"qty\": 2}}");
            Refusal::new(StatusCode::BAD_REQUEST, detail)
        })?;
        let (mut item, mut qty) = (None, None);
        for (name, value) in fields {
            let place = match name.as_str() {
                "item" => &mut item,
                "qty" => &mut qty,
                _ => {
                    let name = echo(&name);
                    let detail = format!("`{name}` is not a field of an order: send only `item` and `qty`");
                    return Err(Refusal::of_field(name, detail));
                }
            };
            // Most JSON parsers silently use the last duplicate: one reader's 1 is another's 1000.
            if place.replace(value).is_some() {
                return Err(Refusal::of_field(&name, format!("`{name}` is there twice: send it once")));
            }
        }
        Ok(Self { item: check_item(item)?, qty: check_qty(qty)? })
    }

    /// Returns the ordered item: one line of at most 100 characters, without surrounding white
    /// space.
    pub fn item(&self) -> &str {
        &self.item
    }

    /// Returns the quantity, from 1 to 1000.
    pub fn qty(&self) -> u32 {
        self.qty
    }
}

fn check_item(item: Option<Value>) -> Result<String, Refusal> {
    let wrong = |what: String| Refusal::of_field("item", format!("`item` {what}"));
    let item = match item {
        Some(Value::String(item)) => item,
        None | Some(Value::Null) => return Err(wrong("is missing: send what is ordered, such as \"tea\"".into())),
        Some(other) => {
            let other = echo(&other.to_string());
            return Err(wrong(format!("is {other}: send it as a string, such as \"tea\"")));
        }
    };
    let item = item.trim();
    let chars = item.chars().count();
    if item.is_empty() {
        Err(wrong("is empty: say what is ordered, such as \"tea\"".into()))
    } else if chars > ITEM_CHARS_MAX {
        Err(wrong(format!("has {chars} characters: shorten it to {ITEM_CHARS_MAX}")))
    } else if item.contains(char::is_control) {
        Err(wrong("has a line break or another control character: send one line of text".into()))
    } else {
        Ok(item.into())
    }
}

fn check_qty(qty: Option<Value>) -> Result<u32, Refusal> {
    let mend = format!("send a whole number from 1 to {QTY_MAX}, such as 2");
    let found = match &qty {
        None | Some(Value::Null) => "missing".into(),
        Some(value) => match value.as_u64().and_then(|qty| u32::try_from(qty).ok()) {
            Some(qty @ 1..=QTY_MAX) => return Ok(qty),
            _ => echo(&value.to_string()),
        },
    };
    Err(Refusal::of_field("qty", format!("`qty` is {found}: {mend}")))
}

fn echo(sent: &str) -> String {
    let mut chars = sent.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = chars.by_ref().take(ECHO_CHARS_MAX).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// Members of a JSON object as they were sent: a map would hide a duplicate.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = object.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}
