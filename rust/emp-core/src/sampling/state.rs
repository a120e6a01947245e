//! What a commit of the tail sampler remembers, packed into one value: its decisions, and which blocks it sent a part of.
//!
//! ```text
//! version u8 = 1 | seq u64 | time i64 | through_offset u64 | decisions u32, each: trace id 16, verdict u8, threshold 7
//!                                                          | passed u32, each: offset u64          (all big-endian)
//! ```

use super::threshold::Threshold;
use super::traces::TraceId;
use crate::error::{CoreError, ErrorKind};

const VERSION: u8 = 1;
const DROPPED: u8 = 0;
const KEPT: u8 = 1;
const KEPT_WITH_THRESHOLD: u8 = 2;

/// One commit's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Its number; they grow.
    pub seq: u64,
    /// When it was made, in the sampler's time, which is about that of the wall.
    pub time_ns: i64,
    /// The highest offset that had been taken.
    pub through_offset: u64,
    /// Each trace that was decided, and how: see [`super::traces::Decided::kept`].
    pub decisions: Vec<(TraceId, Option<Option<Threshold>>)>,
    /// Blocks that stay unacknowledged though the rows of traces that were kept until now have been sent.
    pub passed: Vec<u64>,
}

impl Commit {
    /// Packs it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(33 + 24 * self.decisions.len() + 8 * self.passed.len());
        out.push(VERSION);
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.time_ns.to_be_bytes());
        out.extend_from_slice(&self.through_offset.to_be_bytes());
        out.extend_from_slice(&(self.decisions.len() as u32).to_be_bytes());
        for (id, kept) in &self.decisions {
            let (verdict, threshold) = match kept {
                None => (DROPPED, 0),
                Some(None) => (KEPT, 0),
                Some(Some(threshold)) => (KEPT_WITH_THRESHOLD, threshold.to_u64()),
            };
            out.extend_from_slice(id);
            out.extend_from_slice(&(u64::from(verdict) << 56 | threshold).to_be_bytes());
        }
        out.extend_from_slice(&(self.passed.len() as u32).to_be_bytes());
        for offset in &self.passed {
            out.extend_from_slice(&offset.to_be_bytes());
        }
        out
    }

    /// Unpacks it. A newer version is an error of kind `log_newer`.
    pub fn parse(bytes: &[u8]) -> Result<Self, CoreError> {
        if bytes.first().is_some_and(|version| *version > VERSION) {
            return Err(CoreError::new(
                ErrorKind::LogNewer,
                0,
                format!("decisions of version {}; this emp-pipe reads up to {VERSION}", bytes[0]),
            ));
        }
        let mut cursor = Cursor { bytes, at: 0 };
        cursor.parse().ok_or_else(|| CoreError::new(ErrorKind::BlockInvalid, cursor.at, "the tail sampler's decisions cannot be read"))
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(taken)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// A count of things that take `size` bytes each: more than there can be is refused before memory is taken.
    fn count(&mut self, size: usize) -> Option<usize> {
        let count = u32::from_be_bytes(self.take()?) as usize;
        (count <= (self.bytes.len() - self.at) / size).then_some(count)
    }

    fn parse(&mut self) -> Option<Commit> {
        let [VERSION] = self.take()? else { return None };
        let (seq, time_ns, through_offset) = (self.u64()?, self.u64()? as i64, self.u64()?);
        let count = self.count(24)?;
        let mut decisions = Vec::with_capacity(count);
        for _ in 0..count {
            let id = self.take()?;
            let packed = self.u64()?;
            let kept = match (packed >> 56) as u8 {
                DROPPED => None,
                KEPT => Some(None),
                KEPT_WITH_THRESHOLD => Some(Some(Threshold::from_u64(packed & ((1 << 56) - 1))?)),
                _ => return None,
            };
            decisions.push((id, kept));
        }
        let count = self.count(8)?;
        let mut passed = Vec::with_capacity(count);
        for _ in 0..count {
            passed.push(self.u64()?);
        }
        (self.at == self.bytes.len()).then_some(Commit { seq, time_ns, through_offset, decisions, passed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_commit_reads_back(
            seq: u64, time_ns: i64, through_offset: u64, passed in proptest::collection::vec(any::<u64>(), 0..5),
            decisions in proptest::collection::vec((any::<[u8; 16]>(), proptest::option::of(proptest::option::of(0..1u64 << 56))), 0..9)
        ) {
            let decisions = decisions.into_iter().map(|(id, kept)| (id, kept.map(|kept| kept.and_then(Threshold::from_u64)))).collect();
            let commit = Commit { seq, time_ns, through_offset, decisions, passed };
            let bytes = commit.to_bytes();
            prop_assert_eq!(Commit::parse(&bytes).unwrap(), commit);
            prop_assert!(Commit::parse(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Commit::parse(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = 1;
            }
            let _ = Commit::parse(&bytes);
        }
    }

    #[test]
    fn a_newer_version_is_named_as_such() {
        assert_eq!(Commit::parse(&[2, 0]).unwrap_err().kind, ErrorKind::LogNewer);
        assert_eq!(Commit::parse(&[]).unwrap_err().kind, ErrorKind::BlockInvalid);
    }
}
