/* A stand-in for NVIDIA's management library with three GPUs, the last of them partitioned into two MIG instances.

Loaded through LD_LIBRARY_PATH, so that tests can call the real nvidia-ml-py on hosts without a GPU. */
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
typedef struct { const char *uuid; int split; } Device;
static Device devices[] = {
    {"GPU-aaaa1111-0000", -1}, {"GPU-aaaa2222-0000", 0}, {"GPU-bbbb0000-0000", 1},
    {"MIG-cccc1111-0000", -1}, {"MIG-cccc2222-0000", -1},
};

int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "not supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) { *device = &devices[index]; return OK; }

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length) {
    strncpy(uuid, device->uuid, length);
    return OK;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *now, unsigned *later) {
    if (device->split < 0) return NOT_SUPPORTED;
    *now = *later = (unsigned)device->split;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) { (void)device; *count = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **part) {
    (void)device;
    if (index % 3 || index > 3) return NOT_FOUND; /* slots 0 and 3 are used */
    *part = &devices[3 + index / 3];
    return OK;
}
