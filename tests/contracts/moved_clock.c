// Preloaded into a node, lets a test put the node's clock forward while it runs. The file that
// MOVED_CLOCK names holds by how many nanoseconds (int64, in the machine's byte order). Timers that
// run on the monotonic clock are left alone.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS INT64_C(1000000000)

static const volatile int64_t *ahead_ns;

__attribute__((constructor)) static void map_file(void) {
   const char *path = getenv("MOVED_CLOCK");
   const int   file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
   if (file < 0) return;
   void *page = mmap(0, sizeof *ahead_ns, PROT_READ, MAP_SHARED, file, 0);
   close(file);
   if (page != MAP_FAILED) ahead_ns = page;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
   const int result = (int)syscall(SYS_clock_gettime, clock, at);
   if (result == 0 && clock == CLOCK_REALTIME && ahead_ns) {
      const int64_t moved = at->tv_sec * SECOND_NS + at->tv_nsec + *ahead_ns;
      at->tv_sec = moved / SECOND_NS;
      at->tv_nsec = moved % SECOND_NS;
   }
   return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
   struct timespec now;
   (void)zone;
   if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
   at->tv_sec = now.tv_sec;
   at->tv_usec = now.tv_nsec / 1000;
   return 0;
}

time_t time(time_t *at) {
   struct timespec now;
   if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
   if (at) *at = now.tv_sec;
   return now.tv_sec;
}
