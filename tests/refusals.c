/* Make the operations of a file system fail that it does not have.
 *
 * Loaded with LD_PRELOAD. REFUSED is a list of `operation=errno`, separated by commas; REFUSED_BELOW
 * is the directory that they fail in. `refusals.py` sets both.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

static int number_of(const char *operation) {
  const char *list = getenv("REFUSED"), *found = list;
  size_t length = strlen(operation);
  while (found && (found = strstr(found, operation))) {
    if ((found == list || found[-1] == ',') && found[length] == '=') return atoi(found + length + 1);
    found += length;
  }
  return 0;
}

static int is_below(const char *path) {
  const char *directory = getenv("REFUSED_BELOW");
  size_t length = directory ? strlen(directory) : 0;
  return length && !strncmp(path, directory, length) && (path[length] == '/' || !path[length]);
}

static int of_descriptor(int descriptor, const char *operation) {
  int number = number_of(operation);
  char link[64], path[PATH_MAX];
  if (!number) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return is_below(path) ? number : 0;
}

static int of_path(int directory, const char *path, const char *operation) {
  int descriptor = -1;
  if (!strncmp(path, "/proc/self/fd/", 14)) return of_descriptor(atoi(path + 14), operation);
  if (path[0] == '/') return is_below(path) ? number_of(operation) : 0;
  if (directory == AT_FDCWD) descriptor = open(".", O_PATH | O_CLOEXEC);
  int number = of_descriptor(descriptor < 0 ? directory : descriptor, operation);
  if (descriptor >= 0) close(descriptor);
  return number;
}

#define REFUSE(number) do { int code = (number); if (code) { errno = code; return -1; } } while (0)

int chmod(const char *path, mode_t mode) {
  REFUSE(of_path(AT_FDCWD, path, "chmod"));
  return NEXT(int (*)(const char *, mode_t), "chmod")(path, mode);
}
int fchmod(int descriptor, mode_t mode) {
  REFUSE(of_descriptor(descriptor, "chmod"));
  return NEXT(int (*)(int, mode_t), "fchmod")(descriptor, mode);
}
int fchmodat(int directory, const char *path, mode_t mode, int flags) {
  REFUSE(of_path(directory, path, "chmod"));
  return NEXT(int (*)(int, const char *, mode_t, int), "fchmodat")(directory, path, mode, flags);
}
int flock(int descriptor, int operation) {
  REFUSE(of_descriptor(descriptor, "flock"));
  return NEXT(int (*)(int, int), "flock")(descriptor, operation);
}
static int lock(int descriptor, int command, void *argument, const char *name) {
  if (command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK)
    REFUSE(of_descriptor(descriptor, "fcntl"));
  return NEXT(int (*)(int, int, ...), name)(descriptor, command, argument);
}
int fcntl(int descriptor, int command, ...) {
  va_list list;
  va_start(list, command);
  void *argument = va_arg(list, void *);
  va_end(list);
  return lock(descriptor, command, argument, "fcntl");
}
int fcntl64(int descriptor, int command, ...) {
  va_list list;
  va_start(list, command);
  void *argument = va_arg(list, void *);
  va_end(list);
  return lock(descriptor, command, argument, "fcntl64");
}
int fsync(int descriptor) {
  struct stat status;
  if (!fstat(descriptor, &status) && S_ISDIR(status.st_mode))
    REFUSE(of_descriptor(descriptor, "fsync-directory"));
  REFUSE(of_descriptor(descriptor, "fsync"));
  return NEXT(int (*)(int), "fsync")(descriptor);
}
int syncfs(int descriptor) {
  REFUSE(of_descriptor(descriptor, "syncfs"));
  return NEXT(int (*)(int), "syncfs")(descriptor);
}
int linkat(int from, const char *old, int directory, const char *path, int flags) {
  REFUSE(of_path(directory, path, "link"));
  return NEXT(int (*)(int, const char *, int, const char *, int), "linkat")(
    from, old, directory, path, flags);
}
int symlinkat(const char *target, int directory, const char *path) {
  REFUSE(of_path(directory, path, "symlink"));
  return NEXT(int (*)(const char *, int, const char *), "symlinkat")(target, directory, path);
}
int renameat2(int from, const char *old, int directory, const char *path, unsigned flags) {
  REFUSE(of_path(directory, path, "exchange"));
  return NEXT(int (*)(int, const char *, int, const char *, unsigned), "renameat2")(
    from, old, directory, path, flags);
}
int fchown(int descriptor, uid_t uid, gid_t gid) {
  REFUSE(of_descriptor(descriptor, "chown"));
  return NEXT(int (*)(int, uid_t, gid_t), "fchown")(descriptor, uid, gid);
}
int fchownat(int directory, const char *path, uid_t uid, gid_t gid, int flags) {
  REFUSE(*path ? of_path(directory, path, "chown") : of_descriptor(directory, "chown"));
  return NEXT(int (*)(int, const char *, uid_t, gid_t, int), "fchownat")(
    directory, path, uid, gid, flags);
}
int utimensat(int directory, const char *path, const struct timespec times[2], int flags) {
  REFUSE(path ? of_path(directory, path, "utime") : of_descriptor(directory, "utime"));
  return NEXT(int (*)(int, const char *, const struct timespec *, int), "utimensat")(
    directory, path, times, flags);
}
int futimens(int descriptor, const struct timespec times[2]) {
  REFUSE(of_descriptor(descriptor, "utime"));
  return NEXT(int (*)(int, const struct timespec *), "futimens")(descriptor, times);
}
