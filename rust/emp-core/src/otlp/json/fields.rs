//! One message of OTLP JSON to protobuf, by its descriptors.

use super::escape::put_unescaped;
use super::fault::{Fault, Result};
use super::numbers::{double, from_base64, signed, unsigned};
use super::text::{Str, Text};
use crate::normalize::copy::hex;
use crate::normalize::wire::{close, open};
use crate::otlp::descriptors::{ANY_VALUE, Descriptor, KEY_VALUE, Kind};
use crate::otlp::wire::{put_bytes, put_varint};

/// What is being written.
pub struct Writer<'a> {
    /// What is read.
    pub text: Text<'a>,
    /// The protobuf so far.
    pub out: Vec<u8>,
    /// `out` may not become larger; numbers in lists take more room than their text.
    pub max_bytes: usize,
}

/// The detail of a fault that means: `out` would exceed its limit.
pub const OVER_LIMIT: &str = "the request is over the limit as protobuf, or has too many items for it";

/// The field of a key; `expected` is where it is looked for first.
#[inline(always)]
fn find(descriptors: &'static [Descriptor], key: &[u8], expected: usize) -> Option<usize> {
    let is_key = |descriptor: &Descriptor| descriptor.name.as_bytes() == key;
    if descriptors.get(expected).is_some_and(is_key) {
        return Some(expected);
    }
    descriptors.iter().position(is_key)
}

/// A key with escapes, or as the field is called in protobuf: `trace_id`.
#[cold]
fn find_other(descriptors: &'static [Descriptor], key: &[u8]) -> Option<usize> {
    let mut name = Vec::new();
    put_unescaped(&mut name, key);
    let mut camel = Vec::with_capacity(name.len());
    let mut is_word = false;
    for byte in name {
        match byte {
            b'_' => is_word = true,
            _ => {
                camel.push(if is_word { byte.to_ascii_uppercase() } else { byte });
                is_word = false;
            }
        }
    }
    descriptors.iter().position(|descriptor| descriptor.name.as_bytes() == camel)
}

/// Who reads text and writes protobuf.
pub trait Host<'a> {
    /// Its writer.
    fn writer(&mut self) -> &mut Writer<'a>;
}

impl<'a> Host<'a> for Writer<'a> {
    #[inline(always)]
    fn writer(&mut self) -> &mut Self {
        self
    }
}

/// Calls `field` for each field of the object that is next; keys without a descriptor are stepped over.
#[inline(always)]
pub fn object<'a, H: Host<'a>>(
    host: &mut H,
    descriptors: &'static [Descriptor],
    mut field: impl FnMut(&mut H, &'static Descriptor) -> Result<()>,
) -> Result<()> {
    if !host.writer().text.eat(b'{') {
        return host.writer().other_type("an object");
    }
    if host.writer().text.eat(b'}') {
        return Ok(());
    }
    // Senders write fields in their order: the next one is most likely the one behind the last.
    let mut expected = 0;
    loop {
        let key = match host.writer().text.plain_key() {
            Some(key) => key,
            None => host.writer().text.key()?.raw,
        };
        match find(descriptors, key, expected).or_else(|| find_other(descriptors, key)) {
            Some(index) => {
                expected = index + 1;
                field(host, &descriptors[index]).map_err(|fault| fault.under(descriptors[index].name))?;
            }
            None => host.writer().text.skip()?,
        }
        if !host.writer().text.more(b'}')? {
            return Ok(());
        }
    }
}

/// Calls `element` for each element of the list that is next.
#[inline(always)]
pub fn list<'a, H: Host<'a>>(host: &mut H, mut element: impl FnMut(&mut H, usize) -> Result<()>) -> Result<()> {
    if !host.writer().text.eat(b'[') {
        return host.writer().other_type("a list");
    }
    if host.writer().text.eat(b']') {
        return Ok(());
    }
    let mut index = 0;
    loop {
        element(host, index).map_err(|fault| fault.at_index(index))?;
        index += 1;
        if !host.writer().text.more(b']')? {
            return Ok(());
        }
    }
}

impl<'a> Writer<'a> {
    /// Whether the value is null, which is: absent.
    #[inline(always)]
    pub fn null(&mut self) -> Result<bool> {
        if self.text.peek() != b'n' {
            return Ok(false);
        }
        self.text.word(b"null")?;
        Ok(true)
    }

    /// Appends the fields of a message, whose object is next; `depth` is how many messages may lie in it.
    pub fn message(&mut self, descriptors: &'static [Descriptor], depth: usize) -> Result<()> {
        object(self, descriptors, |this, descriptor| this.field(descriptor, depth))
    }

    /// Appends a field, whose value is next.
    #[inline]
    pub fn field(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        if self.null()? {
            return Ok(());
        }
        if !descriptor.repeated {
            return self.value(descriptor, depth);
        }
        match descriptor.kind {
            Kind::Message(inner) if std::ptr::eq(inner, &KEY_VALUE) => list(self, |this, _| {
                if depth >= 2 && this.usual_attribute((descriptor.number << 3 | 2) as u8) {
                    return Ok(());
                }
                this.value(descriptor, depth)
            }),
            Kind::Message(_) | Kind::String => list(self, |this, _| this.value(descriptor, depth)),
            kind => {
                let packed = open(&mut self.out, (descriptor.number << 3 | 2) as u8);
                list(self, |this, _| {
                    this.check_size()?;
                    this.scalar(kind, None)
                })?;
                close(&mut self.out, packed);
                Ok(())
            }
        }
    }

    /// Refuses to grow over the limit.
    #[inline(always)]
    pub fn check_size(&self) -> Result<()> {
        if self.out.len() > self.max_bytes { Err(self.over_limit()) } else { Ok(()) }
    }

    #[cold]
    pub fn over_limit(&self) -> Box<Fault> {
        Box::new(Fault { broken: true, offset: self.text.offset(), detail: OVER_LIMIT.into(), path: String::new() })
    }

    /// Appends one value of a field with its tag; what protobuf leaves out (an empty string, a zero) is left out.
    #[inline]
    fn value(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        let bytes_tag = (descriptor.number << 3 | 2) as u8;
        match descriptor.kind {
            // One message, the value.
            Kind::Message(inner) if depth >= 1 && std::ptr::eq(inner, &ANY_VALUE) && self.usual_value(bytes_tag) => Ok(()),
            Kind::Message(inner) => {
                let Some(depth) = depth.checked_sub(1) else {
                    return self.text.wrong(self.text.offset(), "messages are nested too deep");
                };
                let message = open(&mut self.out, bytes_tag);
                self.message(inner, depth)?;
                close(&mut self.out, message);
                Ok(())
            }
            Kind::String => {
                if let Some(text) = self.text.plain_string() {
                    if !text.is_empty() || descriptor.presence || descriptor.repeated {
                        put_bytes(&mut self.out, descriptor.number, text);
                    }
                    return Ok(());
                }
                let string = self.string("a string")?;
                if string.escaped {
                    let content = open(&mut self.out, bytes_tag);
                    put_unescaped(&mut self.out, string.raw);
                    close(&mut self.out, content);
                } else if !string.raw.is_empty() || descriptor.presence || descriptor.repeated {
                    put_bytes(&mut self.out, descriptor.number, string.raw);
                }
                Ok(())
            }
            Kind::TraceId => self.id::<16>(descriptor.number, "a trace id of 32 hex digits"),
            Kind::SpanId => self.id::<8>(descriptor.number, "a span id of 16 hex digits"),
            Kind::Base64 => self.base64(descriptor),
            kind => self.scalar(kind, Some(descriptor)),
        }
    }

    #[inline]
    fn string(&mut self, expected: &'static str) -> Result<Str<'a>> {
        if self.text.peek() != b'"' {
            return self.other_type(expected);
        }
        self.text.string()
    }

    fn id<const N: usize>(&mut self, number: u32, expected: &'static str) -> Result<()> {
        let place = self.text.offset();
        if let Some(id) = self.text.plain_string().and_then(hex::<N>) {
            put_bytes(&mut self.out, number, &id);
            return Ok(());
        }
        self.text.go_to(place);
        let string = self.string(expected)?;
        if string.raw.is_empty() {
            return Ok(());
        }
        let mut plain = Vec::new();
        let digits = if string.escaped {
            put_unescaped(&mut plain, string.raw);
            &plain
        } else {
            string.raw
        };
        match hex::<N>(digits) {
            Some(id) => {
                put_bytes(&mut self.out, number, &id);
                Ok(())
            }
            None => self.text.wrong(string.offset, format!("{expected} should be here")),
        }
    }

    fn base64(&mut self, descriptor: &Descriptor) -> Result<()> {
        let string = self.string("a base64 string")?;
        let mut plain = Vec::new();
        put_unescaped(&mut plain, string.raw);
        match from_base64(&plain) {
            Some(bytes) if bytes.is_empty() && !descriptor.presence => Ok(()),
            Some(bytes) => {
                put_bytes(&mut self.out, descriptor.number, &bytes);
                Ok(())
            }
            None => self.text.wrong(string.offset, "a base64 string should be here"),
        }
    }

    /// Appends a number or truth value: with its tag (and a zero left out) as a field, bare in a packed list.
    #[inline]
    fn scalar(&mut self, kind: Kind, field: Option<&Descriptor>) -> Result<()> {
        let bits = self.bits(kind)?;
        if let Some(descriptor) = field {
            if bits == 0 && !descriptor.presence {
                return Ok(());
            }
            put_varint(&mut self.out, u64::from(descriptor.number << 3 | u32::from(kind.wire_type())));
        }
        match kind.wire_type() {
            1 => self.out.extend_from_slice(&bits.to_le_bytes()),
            5 => self.out.extend_from_slice(&(bits as u32).to_le_bytes()),
            _ => put_varint(&mut self.out, bits),
        }
        Ok(())
    }

    /// The bits of a number or truth value as they go on the wire.
    fn bits(&mut self, kind: Kind) -> Result<u64> {
        let next = self.text.peek();
        let start = self.text.offset();
        if let Kind::Bool = kind {
            return match next {
                b't' => self.text.word(b"true").map(|()| 1),
                b'f' => self.text.word(b"false").map(|()| 0),
                _ => self.other_type("true or false"),
            };
        }
        let mut unescaped = Vec::new();
        let (token, quoted) = match next {
            b'-' | b'0'..=b'9' => (self.text.number()?, false),
            b'"' => match self.text.plain_string() {
                Some(plain) => (plain, true),
                None => {
                    put_unescaped(&mut unescaped, self.text.string()?.raw);
                    (&unescaped[..], true)
                }
            },
            _ => return self.other_type(expected(kind)),
        };
        let bits = match kind {
            Kind::Double => double(token, quoted).map(f64::to_bits),
            Kind::Int64 | Kind::Sfixed64 => signed(token).map(|value| value as u64),
            Kind::Uint64 | Kind::Fixed64 => unsigned(token),
            Kind::Uint32 | Kind::Fixed32 => unsigned(token).filter(|value| u32::try_from(*value).is_ok()),
            Kind::Sint32 => {
                signed(token).and_then(|value| i32::try_from(value).ok()).map(|value| u64::from((value << 1 ^ value >> 31) as u32))
            }
            Kind::Enum(names) if quoted && !token.first().is_some_and(u8::is_ascii_digit) => {
                names.iter().find(|(name, _)| name.as_bytes() == token).map(|(_, value)| u64::from(*value))
            }
            // An enum of a value that we do not know is kept.
            _ => signed(token).and_then(|value| i32::try_from(value).ok()).map(|value| i64::from(value) as u64),
        };
        match bits {
            Some(bits) => Ok(bits),
            None => self.text.wrong(start, format!("{} should be here", expected(kind))),
        }
    }

    /// The fault that another type of value is there than expected, or none at all.
    #[cold]
    fn other_type<T>(&mut self, expected: &'static str) -> Result<T> {
        let offset = self.text.offset();
        self.text.skip()?;
        self.text.wrong(offset, format!("{expected} should be here"))
    }
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "a number",
        Kind::Enum(_) => "the number of an enum's value",
        Kind::Uint32 | Kind::Fixed32 => "a whole number of 32 bits",
        Kind::Sint32 => "a signed number of 32 bits",
        Kind::Int64 | Kind::Sfixed64 => "a signed number of 64 bits",
        _ => "a whole number of 64 bits",
    }
}
