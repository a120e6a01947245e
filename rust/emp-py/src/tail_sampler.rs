//! `TailSampler` and `TailTick`: whole traces decided, over blocks that stay where Python holds them.

use std::collections::HashMap;
use std::sync::Mutex;

use emp_core::sampling::settings::{Counts, TailSettings};
use emp_core::sampling::tail::TailSampler;
use emp_core::sampling::tick::{Ended, OutputSettings, Tick};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::block::{CodecArg, PyBlock};
use crate::error::to_py_err;

/// The sampler, and the blocks that it has not ended.
struct Inner {
    sampler: TailSampler,
    blocks: HashMap<u64, Py<PyBlock>>,
}

/// Decides whole traces. Blocks go in with `take`; `tick` says which have ended and what of them goes on.
#[pyclass(name = "TailSampler", module = "emp_pipe._core", frozen)]
pub struct PyTailSampler(Mutex<Inner>);

impl PyTailSampler {
    fn with<T>(&self, use_it: impl FnOnce(&mut Inner) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[pymethods]
impl PyTailSampler {
    /// `settings` is JSON. Raises CoreError (config_invalid) that names the policy.
    #[new]
    fn new(settings: &str) -> PyResult<Self> {
        let sampler = TailSettings::parse(settings).and_then(TailSampler::new).map_err(to_py_err)?;
        Ok(Self(Mutex::new(Inner { sampler, blocks: HashMap::new() })))
    }

    /// Begins anew with the values of the commits that were made.
    fn restore(&self, py: Python<'_>, values: Vec<PyBackedBytes>) -> PyResult<()> {
        py.detach(|| {
            self.with(|inner| {
                inner.blocks.clear();
                inner.sampler.restore(values.iter().map(|value| &**value))
            })
        })
        .map_err(to_py_err)
    }

    /// Takes a block in, in the order of offsets. Raises CoreError (block_invalid): then it is not held.
    fn take(&self, py: Python<'_>, offset: u64, block: Py<PyBlock>, now_unix_nano: i64) -> PyResult<()> {
        py.detach(|| {
            self.with(|inner| {
                let opened = block.get();
                inner.sampler.take(offset, &opened.header, &opened.payload, now_unix_nano)?;
                inner.blocks.insert(offset, block);
                Ok(())
            })
        })
        .map_err(to_py_err)
    }

    /// What is due now; None where nothing is. Outputs get ids of `id_prefix` and numbers from `first_number` on.
    #[pyo3(signature = (now_unix_nano, *, at_once, codec, id_prefix, first_number, level=1))]
    #[expect(clippy::too_many_arguments, reason = "all are keywords")]
    fn tick(
        &self,
        py: Python<'_>,
        now_unix_nano: i64,
        at_once: bool,
        codec: CodecArg,
        id_prefix: String,
        first_number: u64,
        level: i32,
    ) -> PyResult<Option<PyTailTick>> {
        let outputs = OutputSettings { codec: codec.0, level, id_prefix, first_number };
        let made = py.detach(|| {
            self.with(|Inner { sampler, blocks }| {
                let payload_of = |offset| blocks.get(&offset).map(|block| (&block.get().header, &*block.get().payload));
                let tick = sampler.tick(now_unix_nano, at_once, &outputs, payload_of)?;
                for ended in tick.iter().flat_map(|tick| &tick.acks) {
                    blocks.remove(&ended.offset);
                }
                Ok(tick)
            })
        });
        made.map_err(to_py_err)?.map(|tick| PyTailTick::new(py, tick)).transpose()
    }

    #[getter]
    fn policy_names(&self) -> Vec<String> {
        self.with(|inner| inner.sampler.policy_names().to_vec())
    }

    /// Traces that are not decided.
    #[getter]
    fn open_traces(&self) -> usize {
        self.with(|inner| inner.sampler.open_traces())
    }

    /// Decisions that are remembered.
    #[getter]
    fn decided_traces(&self) -> usize {
        self.with(|inner| inner.sampler.decided_traces())
    }

    /// Blocks that have not ended.
    #[getter]
    fn held_blocks(&self) -> usize {
        self.with(|inner| inner.sampler.held_blocks())
    }

    /// What the summaries take; blocks not counted.
    #[getter]
    fn memory_bytes(&self) -> usize {
        self.with(|inner| inner.sampler.memory_bytes())
    }

    /// What has been counted since it was made; see the stub for the names.
    #[getter]
    fn counts(&self) -> HashMap<String, u64> {
        self.with(|inner| named(inner.sampler.counts(), inner.sampler.policy_names()))
    }
}

fn named(counts: &Counts, policies: &[String]) -> HashMap<String, u64> {
    let mut named = HashMap::new();
    let names = policies.iter().map(|name| format!("policy.{name}")).chain(["dropped".to_owned()]);
    for (name, (traces, spans)) in names.zip(&counts.by_policy) {
        named.insert(format!("{name}.traces"), *traces);
        named.insert(format!("{name}.spans"), *spans);
    }
    for (why, traces) in &counts.by_why {
        named.insert(format!("why.{}", why.name()), *traces);
    }
    named.insert("late.kept".to_owned(), counts.late.0);
    named.insert("late.dropped".to_owned(), counts.late.1);
    named.insert("without_trace_id".to_owned(), counts.without_trace_id);
    named.insert("malformed_tracestate".to_owned(), counts.malformed_tracestate);
    named
}

/// What one commit of a tail sampler does.
#[pyclass(name = "TailTick", module = "emp_pipe._core", frozen)]
pub struct PyTailTick {
    acks: Vec<Ended>,
    outputs: Vec<Py<PyBlock>>,
    state: Option<(u64, Vec<u8>)>,
    deletes: Vec<u64>,
}

impl PyTailTick {
    fn new(py: Python<'_>, tick: Tick) -> PyResult<Self> {
        let Tick { acks, outputs, state, deletes } = tick;
        let outputs = outputs.into_iter().map(|block| Py::new(py, PyBlock::from(block))).collect::<PyResult<_>>()?;
        Ok(Self { acks, outputs, state, deletes })
    }
}

#[pymethods]
impl PyTailTick {
    /// The offsets of blocks that have ended.
    #[getter]
    fn acks(&self) -> Vec<u64> {
        self.acks.iter().map(|ended| ended.offset).collect()
    }

    /// By offset: rows that were left out, where there are any.
    #[getter]
    fn skipped(&self) -> HashMap<u64, u64> {
        self.acks.iter().filter(|ended| ended.skipped > 0).map(|ended| (ended.offset, ended.skipped)).collect()
    }

    /// By offset: rows that cannot be read, where there are any.
    #[getter]
    fn broken(&self) -> HashMap<u64, u64> {
        self.acks.iter().filter(|ended| ended.broken > 0).map(|ended| (ended.offset, ended.broken)).collect()
    }

    /// Blocks of the topic `traces`, flagged as decided.
    #[getter]
    fn outputs(&self, py: Python<'_>) -> Vec<Py<PyBlock>> {
        self.outputs.iter().map(|block| block.clone_ref(py)).collect()
    }

    /// The number and the value of what a restart has to know.
    #[getter]
    fn state<'py>(&self, py: Python<'py>) -> Option<(u64, Bound<'py, PyBytes>)> {
        self.state.as_ref().map(|(seq, value)| (*seq, PyBytes::new(py, value)))
    }

    /// Numbers of values that are needed no more.
    #[getter]
    fn deletes(&self) -> Vec<u64> {
        self.deletes.clone()
    }
}
