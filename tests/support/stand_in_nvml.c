/* A stand-in for libnvidia-ml.so.1: the symbols that nvidia-ml-py calls for emp-pipe, with values and faults from a file.
 *
 * The file named by STAND_IN_NVML is read anew at every call, so that a test changes what the driver says while something runs:
 *
 *   driver=580.65.06                          what is not written is answered with NVML_ERROR_NOT_SUPPORTED
 *   gpus=1
 *   gpu.0.uuid=GPU-0                          a device is a prefix: gpu.0, and gpu.0.mig.1 for an instance
 *   gpu.0.utilization=57
 *   gpu.0.field.138=1024                      nvmlDeviceGetFieldValues, by number
 *   gpu.0.compute.0=4242,1073741824           pid, bytes: running processes, compute and graphics
 *   gpu.0.sample.0=4242,1000,57,23,0,0        pid, time, sm, mem, enc, dec: their utilisation
 *   xid.1=gpu.0,79                            the next event of the set; those that were there when it was made are old
 *   error.nvmlDeviceGetPowerUsage.gpu.0=15    an error code, for one device or without one for all
 *   hang.nvmlDeviceGetPowerUsage=1            does not return while this is written
 *   crash.nvmlDeviceGetPowerUsage=1           a segmentation fault
 *
 * The file named by STAND_IN_NVML_CALLS gets a line with the name of every function that is called.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, DRIVER_NOT_LOADED = 9 };

typedef struct { char prefix[48]; } Device;
typedef unsigned long long u64;

#define MOST_DEVICES 64
static Device devices[MOST_DEVICES];
static unsigned last_xid;

static int text(const char *key, char *value, size_t size) {
    char line[512];
    int found = 0;
    size_t length = strlen(key);
#ifdef READ_ONCE /* for benchmarks: the file stays as it was, and is searched in memory */
    static char all[1 << 17];
    static size_t size_of_all;
    if (!size_of_all) {
        FILE *once = fopen(getenv("STAND_IN_NVML") ? getenv("STAND_IN_NVML") : "", "r");
        if (!once) return 0;
        size_of_all = fread(all, 1, sizeof all - 1, once);
        fclose(once);
    }
    FILE *file = size_of_all ? fmemopen(all, size_of_all, "r") : 0;
#else
    FILE *file = fopen(getenv("STAND_IN_NVML") ? getenv("STAND_IN_NVML") : "", "r");
#endif
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == '=') {
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    fclose(file);
    return found;
}

static int number(const char *prefix, const char *name, u64 *value) {
    char key[160], found[256];
    snprintf(key, sizeof key, "%s%s%s", prefix, *prefix ? "." : "", name);
    if (!text(key, found, sizeof found)) return 0;
    *value = strtoull(found, 0, 0);
    return 1;
}

/* Every call begins here: it hangs, crashes or fails as the file says. */
static int enter(const char *function, const Device *device) {
    char key[200];
    u64 value = 0;
    FILE *calls = getenv("STAND_IN_NVML_CALLS") ? fopen(getenv("STAND_IN_NVML_CALLS"), "a") : 0;
    if (calls) {
        fprintf(calls, "%s\n", function);
        fclose(calls);
    }
    for (;;) {
        snprintf(key, sizeof key, "hang.%s", function);
        int hangs = number("", key, &value);
        if (device) {
            snprintf(key, sizeof key, "hang.%s.%s", function, device->prefix);
            hangs |= number("", key, &value);
        }
        if (!hangs) break;
        usleep(20000);
    }
    snprintf(key, sizeof key, "crash.%s", function);
    if (number("", key, &value)) raise(SIGSEGV);
    snprintf(key, sizeof key, "error.%s", function);
    if (number("", key, &value)) return (int)value;
    if (device) {
        snprintf(key, sizeof key, "error.%s.%s", function, device->prefix);
        if (number("", key, &value)) return (int)value;
        snprintf(key, sizeof key, "error.all.%s", device->prefix);
        if (number("", key, &value)) return (int)value;
    }
    return OK;
}

static Device *device_of(const char *prefix) {
    for (int i = 0; i < MOST_DEVICES; i++) {
        if (!devices[i].prefix[0]) snprintf(devices[i].prefix, sizeof devices[i].prefix, "%s", prefix);
        if (!strcmp(devices[i].prefix, prefix)) return &devices[i];
    }
    return 0;
}

#define ENTER(device) do { int code = enter(__func__, device); if (code) return code; } while (0)

#define TEXT(function, name) \
    int function(Device *device, char *value, unsigned size) { \
        char key[160]; \
        ENTER(device); \
        snprintf(key, sizeof key, "%s." name, device->prefix); \
        return text(key, value, size) ? OK : NOT_SUPPORTED; \
    }

#define NUMBER(function, name) \
    int function(Device *device, unsigned *value) { \
        u64 found; \
        ENTER(device); \
        if (!number(device->prefix, name, &found)) return NOT_SUPPORTED; \
        *value = (unsigned)found; \
        return OK; \
    }

#define LONG_NUMBER(function, name) \
    int function(Device *device, u64 *value) { \
        ENTER(device); \
        return number(device->prefix, name, value) ? OK : NOT_SUPPORTED; \
    }

/* A number of several, told apart by an argument: `name.0`, `name.1`, … */
#define NUMBERED(function, name) \
    int function(Device *device, int which, unsigned *value) { \
        char key[64]; \
        u64 found; \
        ENTER(device); \
        snprintf(key, sizeof key, name ".%d", which); \
        if (!number(device->prefix, key, &found)) return NOT_SUPPORTED; \
        *value = (unsigned)found; \
        return OK; \
    }

int nvmlInitWithFlags(unsigned flags) {
    u64 gpus;
    (void)flags;
    ENTER(0);
    return number("", "gpus", &gpus) ? OK : DRIVER_NOT_LOADED;
}

int nvmlShutdown(void) { ENTER(0); return OK; }

const char *nvmlErrorString(int code) { (void)code; return "said by the stand-in"; }

int nvmlSystemGetDriverVersion(char *value, unsigned size) {
    ENTER(0);
    return text("driver", value, size) ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    u64 found;
    ENTER(0);
    if (!number("", "gpus", &found)) return 1; /* the driver was unloaded: NVML_ERROR_UNINITIALIZED */
    *count = (unsigned)found;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    char prefix[48];
    u64 gpus;
    snprintf(prefix, sizeof prefix, "gpu.%u", index);
    *device = device_of(prefix);
    ENTER(*device);
    return number("", "gpus", &gpus) && index < gpus ? OK : INVALID;
}

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")

struct pci { char old_id[16]; unsigned domain, bus, device, id, subsystem; char id_text[32]; };

int nvmlDeviceGetPciInfo_v3(Device *device, struct pci *info) {
    char key[160];
    ENTER(device);
    memset(info, 0, sizeof *info);
    snprintf(key, sizeof key, "%s.pci", device->prefix);
    return text(key, info->id_text, sizeof info->id_text) ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetUtilizationRates(Device *device, unsigned rates[2]) {
    u64 gpu, memory = 0;
    ENTER(device);
    if (!number(device->prefix, "utilization", &gpu)) return NOT_SUPPORTED;
    number(device->prefix, "utilization.memory", &memory);
    rates[0] = (unsigned)gpu;
    rates[1] = (unsigned)memory;
    return OK;
}

static int with_period(const Device *device, const char *name, unsigned *value, unsigned *period) {
    u64 found;
    if (!number(device->prefix, name, &found)) return NOT_SUPPORTED;
    *value = (unsigned)found;
    *period = 167000;
    return OK;
}

int nvmlDeviceGetEncoderUtilization(Device *device, unsigned *value, unsigned *period) {
    ENTER(device);
    return with_period(device, "encoder", value, period);
}

int nvmlDeviceGetDecoderUtilization(Device *device, unsigned *value, unsigned *period) {
    ENTER(device);
    return with_period(device, "decoder", value, period);
}

int nvmlDeviceGetMemoryInfo(Device *device, u64 memory[3]) {
    ENTER(device);
    if (!number(device->prefix, "memory.total", &memory[0]) || !number(device->prefix, "memory.used", &memory[2])) return NOT_SUPPORTED;
    memory[1] = memory[0] - memory[2];
    return OK;
}

NUMBERED(nvmlDeviceGetTemperature, "temperature")
NUMBERED(nvmlDeviceGetTemperatureThreshold, "threshold")

struct temperature { unsigned version, sensor; int degrees; };

/* The newer way to ask; a driver without it has no such symbol, which is answered with FUNCTION_NOT_FOUND. */
int nvmlDeviceGetTemperatureV(Device *device, struct temperature *temperature) {
    u64 found;
    ENTER(device);
    if (!number(device->prefix, "temperature.new", &found)) return 13;
    temperature->degrees = (int)found;
    return OK;
}

NUMBER(nvmlDeviceGetPowerUsage, "power")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power.limit")
LONG_NUMBER(nvmlDeviceGetTotalEnergyConsumption, "energy")
NUMBERED(nvmlDeviceGetClockInfo, "clock")
NUMBERED(nvmlDeviceGetMaxClockInfo, "clock.max")
LONG_NUMBER(nvmlDeviceGetCurrentClocksEventReasons, "throttle")
LONG_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, "throttle.old")
NUMBERED(nvmlDeviceGetPcieThroughput, "pcie.throughput")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie.generation")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie.generation.max")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie.width")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie.width.max")
NUMBER(nvmlDeviceGetPcieReplayCounter, "pcie.replays")
NUMBER(nvmlDeviceGetNumFans, "fans")
NUMBERED(nvmlDeviceGetFanSpeed_v2, "fan")
NUMBER(nvmlDeviceGetGpuInstanceId, "instance")
NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, "mig.most")

int nvmlDeviceGetTotalEccErrors(Device *device, int type, int counter, u64 *count) {
    ENTER(device);
    if (counter != 0) return INVALID; /* 0: since the driver was loaded */
    return number(device->prefix, type ? "ecc.uncorrected" : "ecc.corrected", count) ? OK : NOT_SUPPORTED;
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    u64 found[4];
    ENTER(device);
    if (!number(device->prefix, "rows.corrected", &found[0]) || !number(device->prefix, "rows.uncorrected", &found[1])) return NOT_SUPPORTED;
    if (!number(device->prefix, "rows.pending", &found[2])) found[2] = 0;
    if (!number(device->prefix, "rows.failed", &found[3])) found[3] = 0;
    *corrected = (unsigned)found[0];
    *uncorrected = (unsigned)found[1];
    *pending = (unsigned)found[2];
    *failed = (unsigned)found[3];
    return OK;
}

struct field { unsigned id, scope; long long time, latency; unsigned type; int code; u64 value; };

int nvmlDeviceGetFieldValues(Device *device, int count, struct field *fields) {
    char key[64];
    ENTER(device);
    for (int i = 0; i < count; i++) {
        snprintf(key, sizeof key, "field.%u", fields[i].id);
        fields[i].type = 3; /* unsigned long long */
        fields[i].code = number(device->prefix, key, &fields[i].value) ? OK : NOT_SUPPORTED;
    }
    return OK;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    u64 found;
    ENTER(device);
    if (!number(device->prefix, "mig", &found)) return NOT_SUPPORTED;
    *current = *pending = (unsigned)found;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance) {
    char prefix[48], key[160], found[160];
    ENTER(device);
    snprintf(prefix, sizeof prefix, "%.24s.mig.%u", device->prefix, index);
    snprintf(key, sizeof key, "%s.uuid", prefix);
    if (!text(key, found, sizeof found)) return NOT_FOUND;
    *instance = device_of(prefix);
    return OK;
}

struct attributes { unsigned multiprocessors, shared[5], slices[2]; u64 memory_mb; };

int nvmlDeviceGetAttributes_v2(Device *device, struct attributes *attributes) {
    u64 found;
    ENTER(device);
    memset(attributes, 0, sizeof *attributes);
    if (!number(device->prefix, "multiprocessors", &found)) return NOT_SUPPORTED;
    attributes->multiprocessors = (unsigned)found;
    return OK;
}

struct process { unsigned pid; u64 bytes; unsigned instance, compute_instance; };

static int processes(const Device *device, const char *kind, unsigned *count, struct process *found) {
    char key[160], line[160];
    unsigned room = *count, all = 0;
    for (;; all++) {
        snprintf(key, sizeof key, "%s.%s.%u", device->prefix, kind, all);
        if (!text(key, line, sizeof line)) break;
        if (found && all < room) {
            struct process *process = &found[all];
            process->instance = process->compute_instance = 0xffffffffu;
            sscanf(line, "%u,%llu,%u,%u", &process->pid, &process->bytes, &process->instance, &process->compute_instance);
        }
    }
    *count = all;
    return all > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, struct process *found) {
    ENTER(device);
    return processes(device, "compute", count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, struct process *found) {
    ENTER(device);
    return processes(device, "graphics", count, found);
}

struct sample { unsigned pid; u64 time; unsigned sm, memory, encoder, decoder; };

int nvmlDeviceGetProcessUtilization(Device *device, struct sample *samples, unsigned *count, u64 after) {
    char key[160], line[160];
    unsigned room = *count, newer = 0;
    struct sample sample;
    ENTER(device);
    for (unsigned i = 0;; i++) {
        snprintf(key, sizeof key, "%s.sample.%u", device->prefix, i);
        if (!text(key, line, sizeof line)) break;
        memset(&sample, 0, sizeof sample);
        sscanf(line, "%u,%llu,%u,%u,%u,%u", &sample.pid, &sample.time, &sample.sm, &sample.memory, &sample.encoder, &sample.decoder);
        if (sample.time <= after) continue;
        if (samples && newer < room) samples[newer] = sample;
        newer++;
    }
    *count = newer;
    return !newer ? NOT_FOUND : newer > room ? TOO_SMALL : OK;
}

struct event { Device *device; u64 type, data; unsigned instance, compute_instance; };

int nvmlEventSetCreate(void **set) {
    char key[64], line[160];
    ENTER(0);
    *set = &last_xid;
    for (last_xid = 0;; last_xid++) {
        snprintf(key, sizeof key, "xid.%u", last_xid + 1);
        if (!text(key, line, sizeof line)) return OK;
    }
}

int nvmlEventSetFree(void *set) { (void)set; ENTER(0); return OK; }

int nvmlDeviceRegisterEvents(Device *device, u64 types, void *set) {
    (void)set;
    ENTER(device);
    return types == 8 ? OK : INVALID; /* 8: Xid */
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms) {
    char key[64], line[160], prefix[48];
    unsigned instance = 0xffffffffu;
    u64 xid;
    (void)set;
    for (unsigned waited_ms = 0; waited_ms < timeout_ms; waited_ms += 20) {
        ENTER(0);
        snprintf(key, sizeof key, "xid.%u", last_xid + 1);
        if (text(key, line, sizeof line) && sscanf(line, "%47[^,],%llu,%u", prefix, &xid, &instance) >= 2) {
            last_xid++;
            *event = (struct event){device_of(prefix), 8, xid, instance, 0xffffffffu};
            return OK;
        }
        usleep(20000);
    }
    return TIMEOUT;
}
