// Loaded before libc (LD_PRELOAD), this library makes the k-th call that changes
// files below a folder fail, or kills the process at it.
//
//   disk_arm(folder, k, error): from now on, call k fails with `error`; with
//     error 0 the process is killed instead; k 0 counts only.
//   disk_calls(): the calls since then.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char watched[PATH_MAX];
static atomic_int calls, wanted, code, armed;

void disk_arm(const char *folder, int k, int error) {
  strncpy(watched, folder, PATH_MAX - 1);
  calls = 0;
  wanted = k;
  code = error;
  armed = 1;
}
void disk_disarm(void) { armed = 0; }
int disk_calls(void) { return calls; }

static int below(const char *path, const char *folder) {
  size_t n = strlen(folder);
  return n && path && !strncmp(path, folder, n) &&
         (path[n] == '/' || path[n] == 0);
}

// The path of a name relative to an open folder.
static const char *at(int fd, const char *name, char *space) {
  if (!name || name[0] == '/') return name;
  char link[64];
  ssize_t n;
  if (fd == AT_FDCWD) {
    if (!getcwd(space, PATH_MAX)) return name;
    n = strlen(space);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, space, PATH_MAX - 1);
    if (n < 0) return name;
  }
  snprintf(space + n, PATH_MAX - n, "/%s", name);
  return space;
}

// Whether this call is to fail.
static int hit(const char *path) {
  if (!armed || !below(path, watched)) return 0;
  if (atomic_fetch_add(&calls, 1) + 1 != wanted) return 0;
  if (!code) raise(SIGKILL);
  errno = code;
  return 1;
}
static int hit_at(int fd, const char *name) {
  char space[PATH_MAX * 2];
  return armed ? hit(at(fd, name, space)) : 0;
}
static int hit_fd(int fd) {
  if (!armed) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return hit(path);
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int opening(int fd, const char *name, int flags) {
  return (flags & (O_CREAT | O_TRUNC)) && hit_at(fd, name);
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (opening(AT_FDCWD, path, flags)) return -1; \
    return real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int fd, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (opening(fd, path, flags)) return -1; \
    return real(fd, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  return hit_fd(fd) ? -1 : real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
  REAL(pwrite);
  return hit_fd(fd) ? -1 : real(fd, data, size, place);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
  REAL(pwrite64);
  return hit_fd(fd) ? -1 : real(fd, data, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  return hit_fd(fd) ? -1 : real(fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t place) {
  REAL(pwritev);
  return hit_fd(fd) ? -1 : real(fd, parts, count, place);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  return hit_at(AT_FDCWD, to) ? -1 : real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  return hit_at(b, to) ? -1 : real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(renameat2);
  return hit_at(b, to) ? -1 : real(a, from, b, to, flags);
}
int unlink(const char *path) {
  REAL(unlink);
  return hit_at(AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int fd, const char *path, int flags) {
  REAL(unlinkat);
  return hit_at(fd, path) ? -1 : real(fd, path, flags);
}
int rmdir(const char *path) {
  REAL(rmdir);
  return hit_at(AT_FDCWD, path) ? -1 : real(path);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return hit_at(AT_FDCWD, path) ? -1 : real(path, mode);
}
int mkdirat(int fd, const char *path, mode_t mode) {
  REAL(mkdirat);
  return hit_at(fd, path) ? -1 : real(fd, path, mode);
}
int ftruncate(int fd, off_t size) {
  REAL(ftruncate);
  return hit_fd(fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
  REAL(ftruncate64);
  return hit_fd(fd) ? -1 : real(fd, size);
}
int fsync(int fd) {
  REAL(fsync);
  return hit_fd(fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return hit_fd(fd) ? -1 : real(fd);
}
