/* A guest's load that trusts nothing: it writes blocks that say what they are, reads them back, and tells how long each took.
 *
 * Takes iogen's place and arguments: verify DEVICE JOBS DEPTH BLOCK w|r rand|seq SECONDS. Once a second it prints
 *   VERIFY <operations> <errors> <corrupt> <bucket>:<count> ...
 * where a bucket b holds latencies from 2^(b/4) us on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 2048, MOST_JOBS = 16, BUCKETS = 128 };

static int device;
static volatile uint64_t operations, errors, corrupt, buckets[BUCKETS];

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33; x *= 0xff51afd7ed558ccdull; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ull; x ^= x >> 33;
    return x;
}

static void fill(uint64_t *words, uint64_t block, uint64_t generation)
{
    words[0] = block; words[1] = generation;
    for (unsigned i = 2; i < BLOCK / 8; i++) words[i] = mix(block * 1000003 + generation * 7919 + i);
}

static void took(uint64_t ns)
{
    unsigned bucket = 0;
    for (double us = ns / 1000.0; us > 1 && bucket < BUCKETS - 1; us /= 1.189207115) bucket++;
    __atomic_add_fetch(&buckets[bucket], 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&operations, 1, __ATOMIC_RELAXED);
}

static void *job(void *argument)
{
    uint64_t first = (uint64_t)(uintptr_t)argument * BLOCKS, random = mix(first + 1);
    static uint64_t generations[MOST_JOBS][BLOCKS];
    uint64_t *generation = generations[first / BLOCKS];
    uint64_t *data, *wanted;
    if (posix_memalign((void **)&data, BLOCK, BLOCK) || posix_memalign((void **)&wanted, BLOCK, BLOCK)) abort();
    for (;;) {
        random = mix(random + 0x9e3779b97f4a7c15ull);
        uint64_t at = random % BLOCKS, block = first + at;
        uint64_t began = now_ns();
        if (!generation[at] || random >> 63) {
            fill(data, block, generation[at] + 1);
            if (pwrite(device, data, BLOCK, block * BLOCK) != BLOCK) __atomic_add_fetch(&errors, 1, __ATOMIC_RELAXED);
            else generation[at]++;
        } else {
            if (pread(device, data, BLOCK, block * BLOCK) != BLOCK) {
                __atomic_add_fetch(&errors, 1, __ATOMIC_RELAXED);
            } else {
                fill(wanted, block, generation[at]);
                if (memcmp(data, wanted, BLOCK)) __atomic_add_fetch(&corrupt, 1, __ATOMIC_RELAXED);
            }
        }
        took(now_ns() - began);
    }
}

int main(int count, char **words)
{
    int jobs = count > 2 ? atoi(words[2]) : 4;
    if (jobs > MOST_JOBS) jobs = MOST_JOBS;
    device = open(words[1], O_RDWR | O_DIRECT);
    if (device < 0) { printf("VERIFY cannot open %s: %s\n", words[1], strerror(errno)); return 1; }
    for (uintptr_t number = 0; number < (uintptr_t)jobs; number++) {
        pthread_t thread;
        pthread_create(&thread, NULL, job, (void *)number);
    }
    for (;;) {
        char line[4096];
        sleep(1);
        int at = snprintf(line, sizeof line, "VERIFY %llu %llu %llu", (unsigned long long)operations,
                          (unsigned long long)errors, (unsigned long long)corrupt);
        for (int bucket = 0; bucket < BUCKETS; bucket++) {
            uint64_t held = __atomic_exchange_n(&buckets[bucket], 0, __ATOMIC_RELAXED);
            if (held) at += snprintf(line + at, sizeof line - at, " %d:%llu", bucket, (unsigned long long)held);
        }
        printf("%s\n", line);
        fflush(stdout);
    }
}
