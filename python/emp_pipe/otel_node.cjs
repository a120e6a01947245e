'use strict';
/*
 * job_id from W3C baggage on an application's spans, and on the log records inside them: for Node applications with OpenTelemetry.
 *
 *     node --require .../emp_pipe/otel_node.cjs app.js      (`emp-pipe exec` does it, behind auto-instrumentation)
 *
 * Stands alone: needs no package of its own, takes @opentelemetry/api from the application, and does nothing where there is none.
 * The public methods through which spans and log records come into being (Tracer.startSpan, Logger.emit) are wrapped, whichever SDK
 * implements them, before or after this file is loaded. Its counterpart for Python is otel.py.
 */
const path = require('node:path');
const { isMainThread } = require('node:worker_threads');

const KEYS = (process.env.EMP_OTEL_BAGGAGE_KEYS ?? 'job_id,session_id').split(',').map((key) => key.trim()).filter(Boolean);
const MOST_CHARACTERS = 256; // a longer value is no id: it is not copied, for half of one would be a wrong one
const DONE = Symbol.for('emp-pipe.copies-baggage');
const LOGS = Symbol.for('io.opentelemetry.js.api.logs'); // where every version of @opentelemetry/api-logs keeps the provider
const FLUSH_PATIENCE_MS = 3000;

/** The files of auto-instrumentation that are loaded. */
function registers() {
  return Object.keys(require.cache).filter((file) => file.includes('auto-instrumentations-node'));
}

function fromApplication(name) {
  const places = [...registers().slice(0, 1), process.argv[1], path.join(process.cwd(), 'x')].filter(Boolean).map((file) => path.dirname(file));
  try {
    return require(require.resolve(name, { paths: places }));
  } catch {
    return undefined;
  }
}

function copied(api, context, present) {
  const found = {};
  const baggage = api.propagation.getBaggage(context);
  const around = api.trace.getSpan(context)?.attributes;
  for (const key of KEYS) {
    if (present?.[key] !== undefined) continue;
    const value = baggage?.getEntry(key)?.value || around?.[key];
    if (typeof value === 'string' && value.length > 0 && value.length <= MOST_CHARACTERS) found[key] = value;
  }
  return found;
}

function wrap(example, method, wrapper) {
  const prototype = example && Object.getPrototypeOf(example);
  const original = prototype?.[method];
  if (typeof original !== 'function' || original[DONE]) return;
  const wrapped = wrapper(original);
  wrapped[DONE] = true;
  prototype[method] = wrapped;
}

function wrapTracer(api, provider) {
  const sdk = typeof provider?.getDelegate === 'function' ? provider.getDelegate() : provider;
  const tracer = sdk?.getTracer?.('emp-pipe');
  // The API's own no-op tracer stays as it is: there is nothing to put an attribute on.
  if (!tracer || tracer.constructor?.name === 'NoopTracer') return;
  wrap(tracer, 'startSpan', (original) => function startSpan(name, options, context) {
    const inside = context ?? api.context.active();
    const added = copied(api, inside, options?.attributes);
    return original.call(this, name, { ...options, attributes: { ...added, ...options?.attributes } }, inside);
  });
}

function wrapLogger(api, provider) {
  const sdk = typeof provider?._getDelegate === 'function' ? provider._getDelegate() : provider;
  const logger = sdk?.getLogger?.('emp-pipe');
  if (!logger || logger.constructor?.name === 'NoopLogger') return;
  wrap(logger, 'emit', (original) => function emit(record) {
    const added = copied(api, record?.context ?? api.context.active(), record?.attributes);
    return original.call(this, { ...record, attributes: { ...added, ...record?.attributes } });
  });
}

/** Calls `then` with what is set from now on, as the API's own method sets it. */
function after(target, method, then) {
  const original = target?.[method];
  if (typeof original !== 'function') return;
  target[method] = function (provider, ...rest) {
    const result = original.call(this, provider, ...rest);
    then(provider);
    return result;
  };
}

function flush() {
  const providers = [api.trace.getTracerProvider(), api.metrics.getMeterProvider(), globalThis[LOGS]?.(1)];
  const flushed = providers.map((provider) => provider?.getDelegate?.() ?? provider).map(async (provider) => provider?.forceFlush?.());
  const patience = new Promise((resolve) => setTimeout(resolve, FLUSH_PATIENCE_MS));
  return Promise.race([Promise.allSettled(flushed), patience]);
}

/**
 * Auto-instrumentation listens for SIGTERM, and by that keeps an application from ending that does not listen itself; at SIGINT it
 * loses what waits. Where the application does not listen, what waits is sent, and then the signal ends it as it would have.
 */
function endBySignal(signal) {
  const present = new Set(process.listeners(signal));
  const onSignal = () => {
    if (process.listeners(signal).some((listener) => listener !== onSignal && !present.has(listener))) return;
    process.removeListener(signal, onSignal);
    flush().then(() => {
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    });
  };
  process.on(signal, onSignal);
}

/** Calls `then` with the value of a property, now and whenever it is set: @opentelemetry/api-logs is often there more than once. */
function whenSet(target, key, then) {
  let value = target[key];
  const get = () => value;
  const set = (next) => {
    value = next;
    then(next);
  };
  Object.defineProperty(target, key, { configurable: true, enumerable: true, get, set });
  then(value);
}

const api = fromApplication('@opentelemetry/api');
if (api && !globalThis[DONE]) {
  globalThis[DONE] = true;
  wrapTracer(api, api.trace.getTracerProvider());
  after(api.trace, 'setGlobalTracerProvider', (provider) => wrapTracer(api, provider));
  whenSet(globalThis, LOGS, (provider) => wrapLogger(api, provider?.(1)));
  if (isMainThread && registers().length > 0) ['SIGTERM', 'SIGINT'].forEach(endBySignal);
}
