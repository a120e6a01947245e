//! [`RateLimiter`]: so many records a second of each source, tag or service, and a burst; a bucket of tokens for each.

use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;
use serde::Deserialize;

use super::condition::{Condition, ConditionConfig};
use super::{Filtered, named, of_rule, records};
use crate::batch::{Batch, FLAG_ERROR, FLAG_EVENT, tag_of};
use crate::error::CoreError;
use crate::otlp::decode::string_attribute;
use crate::otlp::fields::resource;

const NANOS: f64 = 1e9;

/// What has a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    /// A resource with a tag: one sender's one stream.
    Source,
    Tag,
    Service,
    /// All together.
    All,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    name: String,
    #[serde(rename = "where")]
    condition: ConditionConfig,
    by: By,
    records_per_s: f64,
    burst: f64,
    /// Errors and events pass, and take no token.
    spare_errors: bool,
}

struct Rule {
    condition: Condition,
    config: RuleConfig,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_nano: u64,
}

type Buckets = HashMap<(usize, u64), Bucket, ahash::RandomState>;

/// Compiled rules and their buckets.
pub struct RateLimiter {
    names: Vec<String>,
    rules: Vec<Rule>,
    max_buckets: usize,
    hasher: ahash::RandomState,
    buckets: Mutex<Buckets>,
}

impl RateLimiter {
    /// Compiles rules from the JSON that Python's settings become. Errors are of kind `config_invalid`.
    pub fn parse(json: &str, max_buckets: usize) -> Result<Self, CoreError> {
        let mut out = Self {
            names: Vec::new(),
            rules: Vec::new(),
            max_buckets: max_buckets.max(1),
            hasher: ahash::RandomState::new(),
            buckets: Mutex::default(),
        };
        for config in named::<RuleConfig>(json, "rate limits")? {
            let condition = Condition::new(config.condition.clone()).map_err(of_rule(&config.name))?;
            out.names.push(config.name.clone());
            out.rules.push(Rule { condition, config });
        }
        Ok(out)
    }

    /// The rules' names, in their order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many buckets there are.
    pub fn bucket_count(&self) -> usize {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What is left of a batch at a time of a clock that does not jump.
    pub fn apply(&self, batch: &Batch, now_nano: u64) -> Result<Filtered, CoreError> {
        let mut keep = vec![true; batch.len()];
        let mut decided = vec![false; batch.len()];
        let mut dropped = vec![0; self.rules.len()];
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, rule) in self.rules.iter().enumerate() {
            let matching = rule.condition.rows(batch)?;
            let keys = self.keys(batch, rule.config.by);
            // The bucket of the last row: a run of one source looks it up once.
            let mut held: Option<(u64, Bucket)> = None;
            for row in (0..batch.len()).filter(|&row| matching[row]) {
                let spared = rule.config.spare_errors && batch.columns.flags[row] & (FLAG_ERROR | FLAG_EVENT) != 0;
                if std::mem::replace(&mut decided[row], true) || spared {
                    continue;
                }
                let key = keys.of(batch, row, &self.hasher);
                if held.is_none_or(|(held, _)| held != key) {
                    if let Some((key, bucket)) = held {
                        buckets.insert((number, key), bucket);
                    }
                    held = Some((key, self.filled(&mut buckets, number, key, now_nano)));
                }
                let Some((_, bucket)) = &mut held else { continue };
                let taken = records(batch, row);
                if bucket.tokens >= taken as f64 {
                    bucket.tokens -= taken as f64;
                } else {
                    keep[row] = false;
                    dropped[number] += taken;
                }
            }
            if let Some((key, bucket)) = held {
                buckets.insert((number, key), bucket);
            }
            if buckets.len() > self.max_buckets {
                self.forget(&mut buckets, now_nano);
            }
        }
        Ok(Filtered::of(batch, &keep, dropped))
    }

    fn keys(&self, batch: &Batch, by: By) -> Keys {
        let hash = |value: &dyn Fn(&mut ahash::AHasher)| {
            let mut hasher = self.hasher.build_hasher();
            value(&mut hasher);
            std::hash::Hasher::finish(&hasher)
        };
        let tags = || batch.scopes.iter().map(|entry| hash(&|hasher| tag_of(entry).hash(hasher))).collect();
        match by {
            By::All => Keys { scopes: None, resources: None },
            By::Tag => Keys { scopes: Some(tags()), resources: None },
            By::Service => {
                let service = |message| string_attribute(message, resource::ATTRIBUTES, b"service.name");
                let services = batch.resources.iter().map(|entry| hash(&|hasher| service(&entry.message).hash(hasher))).collect();
                Keys { scopes: None, resources: Some(services) }
            }
            By::Source => {
                let sources = batch.resources.iter().map(|entry| hash(&|hasher| entry.message.hash(hasher))).collect();
                Keys { scopes: Some(tags()), resources: Some(sources) }
            }
        }
    }

    /// A bucket with what has come into it since; a new one is full.
    fn filled(&self, buckets: &mut Buckets, number: usize, key: u64, now_nano: u64) -> Bucket {
        let config = &self.rules[number].config;
        let known = buckets.get(&(number, key)).copied();
        let bucket = known.unwrap_or(Bucket { tokens: config.burst, filled_nano: now_nano });
        Bucket { tokens: tokens_at(&bucket, config, now_nano), filled_nano: now_nano.max(bucket.filled_nano) }
    }

    /// Forgets the buckets that are full again, which loses nothing, and beyond that whichever there are.
    fn forget(&self, buckets: &mut Buckets, now_nano: u64) {
        buckets.retain(|(number, _), bucket| {
            let config = &self.rules[*number].config;
            tokens_at(bucket, config, now_nano) < config.burst
        });
        let mut beyond = buckets.len().saturating_sub(self.max_buckets);
        buckets.retain(|_, _| {
            let kept = beyond == 0;
            beyond = beyond.saturating_sub(1);
            kept
        });
    }
}

fn tokens_at(bucket: &Bucket, config: &RuleConfig, now_nano: u64) -> f64 {
    let passed_s = now_nano.saturating_sub(bucket.filled_nano) as f64 / NANOS;
    (bucket.tokens + passed_s * config.records_per_s).min(config.burst)
}

/// Hashes of what the rows' tables say.
struct Keys {
    scopes: Option<Vec<u64>>,
    resources: Option<Vec<u64>>,
}

impl Keys {
    fn of(&self, batch: &Batch, row: usize, hasher: &ahash::RandomState) -> u64 {
        let scope = self.scopes.as_ref().map(|keys| keys[batch.columns.scope[row] as usize]);
        let resource = self.resources.as_ref().map(|keys| keys[batch.columns.resource[row] as usize]);
        match (scope, resource) {
            (Some(scope), Some(resource)) => hasher.hash_one((scope, resource)),
            (one, other) => one.or(other).unwrap_or(0),
        }
    }
}
