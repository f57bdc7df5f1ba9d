/* Preloaded into a QEMU: how long its own mmap, munmap, first touch of a page and start of a thread take, at worst.

   The time for which the kernel let it wait for a CPU (schedstat's second number) is taken off: what is left is waits
   for a lock, and work. What it finds stands in a file of eight words, which whoever reads it may set back to zero. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define SIZE (1 << 20)
enum { MMAP, TOUCH, MUNMAP, THREAD, ROUNDS };

static int schedstat = -1;

static uint64_t now(void)
{
    struct timespec at;
    char text[96] = "";
    unsigned long long ran = 0, waited = 0;
    clock_gettime(CLOCK_MONOTONIC, &at);
    if (pread(schedstat, text, sizeof text - 1, 0) > 0)
        sscanf(text, "%llu %llu", &ran, &waited);
    return (uint64_t)at.tv_sec * 1000000000 + at.tv_nsec - waited;
}

static void note(volatile uint64_t *worst, uint64_t begun)
{
    int64_t took = now() - begun;
    if (took > (int64_t)*worst)
        *worst = took;
}

static void *nothing(void *unused)
{
    return unused;
}

static void *watch(void *words)
{
    volatile uint64_t *worst = words;
    schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    for (;; usleep(500)) {
        pthread_t thread;
        uint64_t begun = now();
        char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        note(&worst[MMAP], begun);
        if (memory != MAP_FAILED) {
            begun = now();
            *(volatile char *)memory = 1;
            note(&worst[TOUCH], begun);
            begun = now();
            munmap(memory, SIZE);
            note(&worst[MUNMAP], begun);
        }
        begun = now();
        int failed = pthread_create(&thread, NULL, nothing, NULL);
        note(&worst[THREAD], begun);
        if (!failed)
            pthread_join(thread, NULL);
        worst[ROUNDS]++;
    }
    return NULL;
}

__attribute__((constructor)) static void begin(void)
{
    pthread_t thread;
    const char *path = getenv("BENCH_STALLS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); /* pages of 4 KB, as on a host that has been up for long */
    void *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (words != MAP_FAILED)
        pthread_create(&thread, NULL, watch, words);
}
