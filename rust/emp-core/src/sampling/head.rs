//! Sampling before the log: a percentage by signal, service and level. Errors and events are always kept, metrics never touched.
//!
//! A log with a trace id is decided like its trace, another one by a hash of its bytes. What is kept by chance says so: spans in their
//! tracestate, logs in the attributes `sampling.threshold` and (where there is no trace id to tell it) `sampling.randomness`.

use serde::Deserialize;

use super::attribute::glob;
use super::span::{Written, read_span, write_with_threshold};
use super::threshold::{Threshold, parse_randomness, randomness_of};
use crate::batch::{Batch, FLAG_ERROR, FLAG_EVENT, Signal};
use crate::error::{CoreError, ErrorKind};
use crate::normalize::severity;
use crate::otlp::decode::string_attribute;
use crate::otlp::fields::{log, resource};
use crate::otlp::scan::{key_value, string_value};
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{Reader, WireError, for_each_field};

const THRESHOLD_KEY: &[u8] = b"sampling.threshold";
const RANDOMNESS_KEY: &[u8] = b"sampling.randomness";
const NO_TRACE: [u8; 16] = [0; 16];

/// One rule as the configuration says it: every condition given must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// What left-out rows are counted under.
    pub name: String,
    /// None: logs and traces.
    pub signal: Option<Signal>,
    /// `service.name`s, with `*`; none: any.
    pub services: Vec<String>,
    /// Logs up to this level; those without one do not match.
    pub max_severity: Option<String>,
    /// So much is kept.
    pub percent: f64,
}

#[derive(Clone, Debug)]
struct Rule {
    signal: Option<Signal>,
    services: Vec<Vec<u8>>,
    max_severity: Option<u8>,
    threshold: Threshold,
}

/// Compiled rules, the first that matches counts; what no rule matches is kept.
#[derive(Clone, Debug)]
pub struct HeadSampler {
    rules: Vec<Rule>,
    names: Vec<String>,
}

/// What sampling left of a batch.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// None: nothing. The very batch where nothing changed is told by `unchanged`.
    pub batch: Option<Batch>,
    /// Every row is kept as it is; `batch` is None then.
    pub unchanged: bool,
    /// Rows that were left out, by rule.
    pub dropped: Vec<u64>,
    /// Spans whose tracestate is malformed or full, and was left as it is.
    pub malformed: u64,
}

/// What becomes of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    AsItIs,
    Kept { threshold: Threshold, randomness: Option<u64> },
    Dropped,
}

impl HeadSampler {
    /// Compiles rules from the JSON that Python's settings become. Errors are of kind `config_invalid`.
    pub fn parse(json: &str) -> Result<Self, CoreError> {
        let configs: Vec<RuleConfig> = serde_json::from_str(json)
            .map_err(|error| CoreError::new(ErrorKind::ConfigInvalid, 0, format!("sampling cannot be set so: {error}")))?;
        let mut sampler = Self { rules: Vec::new(), names: Vec::new() };
        for config in configs {
            sampler.rules.push(Rule {
                signal: config.signal,
                services: config.services.into_iter().map(String::into_bytes).collect(),
                max_severity: config.max_severity.as_deref().map(highest_of).transpose()?,
                threshold: Threshold::of_percent(config.percent)?,
            });
            sampler.names.push(config.name);
        }
        Ok(sampler)
    }

    /// The rules' names, in their order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The rows that are kept.
    pub fn apply(&self, batch: &Batch) -> Result<Sampled, CoreError> {
        let mut sampled = Sampled { batch: None, unchanged: true, dropped: vec![0; self.rules.len()], malformed: 0 };
        let by_resource = self.by_resource(batch);
        if batch.signal == Signal::Metrics || by_resource.iter().all(Vec::is_empty) {
            return Ok(sampled);
        }
        let mut verdicts = Vec::with_capacity(batch.len());
        for row in 0..batch.len() {
            let candidates = &by_resource[batch.columns.resource[row] as usize];
            let severity = batch.columns.severity_number[row];
            let matching = candidates.iter().find(|&&rule| {
                self.rules[rule].max_severity.is_none_or(|most| batch.signal == Signal::Logs && (1..=most).contains(&severity))
            });
            let verdict = match matching {
                Some(&rule) if self.rules[rule].threshold != Threshold::ALWAYS => {
                    let verdict = decide(batch, row, self.rules[rule].threshold).map_err(|error| error.of_kind(ErrorKind::BodyInvalid))?;
                    sampled.dropped[rule] += u64::from(verdict == Verdict::Dropped);
                    verdict
                }
                _ => Verdict::AsItIs,
            };
            sampled.unchanged &= verdict == Verdict::AsItIs;
            verdicts.push(verdict);
        }
        if sampled.unchanged {
            return Ok(sampled);
        }
        let kept = batch.filter(|row| verdicts[row] != Verdict::Dropped);
        verdicts.retain(|verdict| *verdict != Verdict::Dropped);
        if kept.is_empty() {
            return Ok(sampled);
        }
        let malformed = &mut sampled.malformed;
        sampled.batch = Some(if verdicts.iter().all(|verdict| *verdict == Verdict::AsItIs) {
            kept
        } else {
            kept.rewritten(|row, message, out| rewrite(batch.signal, verdicts[row], message, out, malformed))?
        });
        Ok(sampled)
    }

    /// By resource: the rules that can match its rows, in their order; none where the first of them keeps everything.
    fn by_resource(&self, batch: &Batch) -> Vec<Vec<usize>> {
        let of = |service: &[u8]| {
            let matches = |rule: &Rule| {
                rule.signal.is_none_or(|signal| signal == batch.signal)
                    && (rule.services.is_empty() || rule.services.iter().any(|pattern| glob(pattern, service)))
            };
            let mut rules: Vec<usize> = (0..self.rules.len()).filter(|&rule| matches(&self.rules[rule])).collect();
            // Behind a rule without further conditions none is asked.
            let last = rules.iter().position(|&rule| self.rules[rule].max_severity.is_none());
            rules.truncate(last.map_or(rules.len(), |last| last + 1));
            if rules.iter().all(|&rule| self.rules[rule].threshold == Threshold::ALWAYS) { Vec::new() } else { rules }
        };
        batch
            .resources
            .iter()
            .map(|entry| of(string_attribute(&entry.message, resource::ATTRIBUTES, b"service.name").unwrap_or_default()))
            .collect()
    }
}

/// The highest severity number of a level: debug has 5 to 8.
fn highest_of(level: &str) -> Result<u8, CoreError> {
    match severity::of_text(level.as_bytes()) {
        0 => {
            let detail = format!("max_severity: {level:?} is no level; use trace, debug, info or warn");
            Err(CoreError::new(ErrorKind::ConfigInvalid, 0, detail))
        }
        number => Ok(number.div_ceil(4) * 4),
    }
}

fn decide(batch: &Batch, row: usize, threshold: Threshold) -> Result<Verdict, WireError> {
    let flags = batch.columns.flags[row];
    if batch.signal == Signal::Logs {
        if flags & (FLAG_ERROR | FLAG_EVENT) != 0 {
            return Ok(Verdict::AsItIs);
        }
        return decide_log(batch.message(row), &batch.columns.trace_id[row], threshold);
    }
    if batch.columns.trace_id[row] == NO_TRACE {
        return Ok(Verdict::AsItIs);
    }
    if flags & (FLAG_ERROR | FLAG_EVENT) != 0 {
        return Ok(Verdict::Kept { threshold: Threshold::ALWAYS, randomness: None });
    }
    let facts = read_span(Reader::new(batch.message(row)), |_| Ok(()))?;
    let randomness = facts.randomness.unwrap_or_else(|| randomness_of(&facts.trace_id));
    Ok(if threshold.keeps(randomness) { Verdict::Kept { threshold, randomness: None } } else { Verdict::Dropped })
}

fn decide_log(message: &[u8], trace_id: &[u8; 16], threshold: Threshold) -> Result<Verdict, WireError> {
    let (mut said, mut set_before, mut hash) = (None, None, Hash::default());
    for_each_field(Reader::new(message), |field| {
        match field.number {
            log::OBSERVED_TIME_UNIX_NANO => return Ok(()), // when we saw it, which a repeat changes
            log::ATTRIBUTES => {
                let pair = key_value(field.message())?;
                if pair.key == RANDOMNESS_KEY {
                    said = string_value(pair.value)?.and_then(|(text, _)| parse_randomness(text));
                } else if pair.key == THRESHOLD_KEY {
                    set_before = string_value(pair.value)?.and_then(|(text, _)| Threshold::parse(text));
                }
            }
            _ => {}
        }
        hash.add(field.raw);
        Ok::<(), WireError>(())
    })?;
    let by_trace = (*trace_id != NO_TRACE).then(|| randomness_of(trace_id));
    let randomness = said.or(by_trace).unwrap_or_else(|| hash.finish());
    if !threshold.keeps(randomness) {
        return Ok(Verdict::Dropped);
    }
    if set_before.is_some_and(|before| before >= threshold) {
        return Ok(Verdict::AsItIs);
    }
    Ok(Verdict::Kept { threshold, randomness: if said.is_none() && by_trace.is_none() { Some(randomness) } else { None } })
}

fn rewrite(signal: Signal, verdict: Verdict, message: &[u8], out: &mut Vec<u8>, malformed: &mut u64) -> Result<bool, WireError> {
    let Verdict::Kept { threshold, randomness } = verdict else {
        out.extend_from_slice(message);
        return Ok(false);
    };
    if signal == Signal::Traces {
        let written = write_with_threshold(message, threshold, out)?;
        *malformed += u64::from(written == Written::Malformed);
        return Ok(written == Written::Changed);
    }
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        // A lower threshold stood there: it is replaced, for a key must not occur twice.
        if field.number != log::ATTRIBUTES || key_value(field.message())?.key != THRESHOLD_KEY {
            out.extend_from_slice(field.raw);
        }
    }
    let mut text = Vec::new();
    threshold.write(&mut text);
    put_text(out, THRESHOLD_KEY, &text);
    if let Some(randomness) = randomness {
        put_text(out, RANDOMNESS_KEY, format!("{randomness:014x}").as_bytes());
    }
    Ok(true)
}

fn put_text(out: &mut Vec<u8>, key: &[u8], text: &[u8]) {
    let mut value = Vec::new();
    put_scalar(&mut value, Scalar::String(text));
    put_key_value(out, log::ATTRIBUTES, key, &value);
}

/// A hash of bytes that is the same on every machine and in every version: who samples a record again decides alike.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.mix(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
        }
        let rest = chunks.remainder();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn mix(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 ^= self.0 >> 32;
    }

    /// 56 bits.
    fn finish(mut self) -> u64 {
        self.mix(0);
        self.mix(0);
        self.0 & ((1 << 56) - 1)
    }
}
