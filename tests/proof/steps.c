/* Number the steps that processes take on files and on a database server, and let one be the last,
 * or wait at one until another process has done its work.
 *
 * Loaded with LD_PRELOAD. A step is a call of libc that changes something below the watched folder,
 * or sends to a server. The control block is a file that all processes of a run map, so their steps
 * are numbered together; only the process group that it names is counted. `faults.py` lays it out.
 *
 * With `exposed`, a traced step has the lines of Python that led to it, and a hash of the names that
 * are below that folder at that moment.
 *
 * Not seen: stores into mapped memory (SQLite's -shm, which is scratch) and raw system calls, but
 * for openat2, which libc does not have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <dirent.h>
#include <time.h>
#include <unistd.h>

enum {
  COUNT = 0, KILL_BEFORE = 1, KILL_AFTER = 2, FAIL = 3, TEAR = 4, FAIL_ON = 5, INTERRUPT = 6,
  ATTACK = 7
};

struct control {           /* the same layout as faults.Control */
  int group;               /* the process group whose steps count; 0 for none */
  int mode;
  int code;                /* errno of FAIL and FAIL_ON */
  int fired;               /* how often the fault struck */
  int resume;              /* ATTACK: how many of these may go on */
  int reads;               /* whether opening, listing and examining files are steps, too */
  int waits;               /* whether the harness kills, because processes belong to several users */
  int doomed;              /* it is to */
  int stale;               /* the names may have changed since `names` */
  int padding;
  long target;             /* the step that it strikes, from 1 */
  long second;             /* ATTACK: another step that it strikes; 0 for none */
  long taken;              /* steps so far */
  long used;               /* bytes of the trace */
  long room;
  unsigned long names;     /* a hash of the names below `exposed` */
  char folder[512];
  char exposed[512];       /* what others can change; if any, the trace shows sites and names */
  char struck[2048];       /* the step that it struck */
  char trace[];            /* lines: call, path; with `exposed` also the code and the names */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("LD_PROOF_CONTROL");
  if (!path) return;
  int descriptor = open(path, O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return;
  struct stat status;
  if (fstat(descriptor, &status) == 0) {
    void *map = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (map != MAP_FAILED) control = map;
  }
  close(descriptor);
}

static int is_on(void) { return control && control->group && getpgrp() == control->group; }

static int is_watched(const char *path) {
  size_t length = strlen(control->folder);
  return strncmp(path, control->folder, length) == 0 && (path[length] == '/' || !path[length]);
}

static int path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return 1;
}

static int path_at(int folder, const char *name, char *path) {
  int descriptor;
  if (!name) return 0;
  if (sscanf(name, "/proc/self/fd/%d", &descriptor) == 1) return path_of(descriptor, path);
  if (name[0] == '/') { snprintf(path, PATH_MAX, "%s", name); return 1; }
  if (folder == AT_FDCWD) { if (!getcwd(path, PATH_MAX)) return 0; }
  else if (!path_of(folder, path)) return 0;
  size_t length = strlen(path);
  if (name[0]) snprintf(path + length, PATH_MAX - length, "/%s", name);
  return 1;
}

static int is_server(int descriptor) {
  struct sockaddr_un peer;
  socklen_t length = sizeof peer;
  if (getpeername(descriptor, (struct sockaddr *)&peer, &length) != 0) return 0;
  if (peer.sun_family == AF_UNIX) /* a socketpair of the program's own has no name */
    return length > sizeof(sa_family_t) && peer.sun_path[0];
  return peer.sun_family == AF_INET || peer.sun_family == AF_INET6;
}

static void die(void) {
  if (control->waits) {
    __atomic_store_n(&control->doomed, 1, __ATOMIC_SEQ_CST);
    for (;;) pause();
  }
  kill(getpgrp(), SIGKILL); /* the run itself; what it started has to notice */
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int grows(const char *call) {
  static const char *const names[] = {"write", "pwrite", "create", "mkdir", "rename", "symlink",
                                      "link", "fallocate", "copy", "fsync", "setxattr", NULL};
  for (int at = 0; names[at]; at++) if (!strcmp(call, names[at])) return 1;
  return 0;
}

/* Wait until the attack is over; not for ever, if nothing is left that attacks. */
static void be_attacked(int turn) {
  struct timespec pause = {0, 100 * 1000};
  int kept = errno;
  for (int waited = 0; waited < 300 * 1000; waited++) { /* at least 30 s */
    if (__atomic_load_n(&control->resume, __ATOMIC_SEQ_CST) >= turn) break;
    nanosleep(&pause, NULL);
  }
  errno = kept;
}

#define NEXT(name) ({ static __typeof__(&name) found; \
  if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name); found; })

/* What differs from run to run in a name (digits, and words of 8 hex digits and more) counts once. */
static unsigned long hash_of(unsigned long hash, const char *name) {
  while (*name) {
    size_t hex = strspn(name, "0123456789abcdef"), digits = strspn(name, "0123456789");
    size_t alike = hex >= 8 ? hex : digits;
    hash = (hash ^ (unsigned char)(alike ? '#' : *name)) * 1099511628211UL;
    name += alike ? alike : 1;
  }
  return hash;
}

enum { SEEN = 4096 };

/* Collect the hashes of the kinds of names below a directory. Alike, from the third level on, are
 * names with the same end below the same two directories. `plans.distinct` has paths like this, too. */
static int names_below(const char *path, int depth, unsigned long above, unsigned long *seen, int count) {
  struct entry { unsigned long inode; long at; unsigned short length; unsigned char type; char name[]; };
  char entries[8192] __attribute__((aligned(8))), below[PATH_MAX];
  int folder = NEXT(openat)(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (folder < 0) return count;
  for (long read; (read = NEXT(syscall)(SYS_getdents64, folder, entries, sizeof entries)) > 0;)
    for (long at = 0; at < read;) {
      struct entry *entry = (struct entry *)(entries + at);
      at += entry->length;
      if (!strcmp(entry->name, ".") || !strcmp(entry->name, "..")) continue;
      const char *end = strrchr(entry->name, '.'), *shown = depth < 2 ? entry->name : end ? end : "";
      unsigned long hash = hash_of((above ^ '/') * 1099511628211UL, shown), kind = hash + entry->type;
      int known = 0;
      while (known < count && seen[known] != kind) known++;
      if (known == count && count < SEEN) seen[count++] = kind;
      if (entry->type != DT_DIR) continue;
      snprintf(below, sizeof below, "%s/%s", path, entry->name);
      count = names_below(below, depth + 1, depth < 2 ? hash : above, seen, count);
    }
  close(folder);
  return count;
}

static unsigned long names_now(void) {
  unsigned long seen[SEEN], sum = 0;
  int count = names_below(control->exposed, 0, 0, seen, 0);
  while (count--) sum += seen[count] * 0x9e3779b97f4a7c15UL;
  return sum;
}

/* The lines of our Python that led here, the innermost first. Python has no header here. */
static void site_of(char *text, size_t room) {
  typedef void *(*getter)(void *);
  static int is_found;
  static int (*ensure)(void), (*line_of)(void *), (*is_initialized)(void);
  static void (*release)(int), (*forget)(void *), *(*frame_now)(void);
  static getter code_of, back_of;
  static void *(*attribute)(void *, const char *);
  static const char *(*characters)(void *);
  if (!is_found) {
    is_found = 1;
    is_initialized = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    ensure = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    release = dlsym(RTLD_DEFAULT, "PyGILState_Release");
    frame_now = dlsym(RTLD_DEFAULT, "PyEval_GetFrame");
    line_of = dlsym(RTLD_DEFAULT, "PyFrame_GetLineNumber");
    code_of = dlsym(RTLD_DEFAULT, "PyFrame_GetCode");
    back_of = dlsym(RTLD_DEFAULT, "PyFrame_GetBack");
    forget = dlsym(RTLD_DEFAULT, "Py_DecRef");
    attribute = dlsym(RTLD_DEFAULT, "PyObject_GetAttrString");
    characters = dlsym(RTLD_DEFAULT, "PyUnicode_AsUTF8");
  }
  text[0] = 0;
  if (!ensure || !back_of || !is_initialized || !is_initialized()) return;
  size_t used = 0;
  int state = ensure();
  void *frame = frame_now(); /* borrowed */
  for (int depth = 0; frame; depth++) {
    void *code = code_of(frame), *name = attribute(code, "co_filename");
    const char *path = name ? characters(name) : "", *ours = strstr(path, "/sagewai_ops/");
    if (!ours) ours = strstr(path, "/commands/");
    if (ours && used + 1 < room) {
      const char *last = strrchr(ours, '/');
      while (last > ours && last[-1] != '/') last--;
      int added = snprintf(text + used, room - used, "%s:%d ", last, line_of(frame));
      used = used + added < room ? used + added : room - 1;
    }
    if (name) forget(name);
    forget(code);
    void *back = back_of(frame);
    if (depth) forget(frame);
    frame = back;
  }
  release(state);
}

static int changes_names(const char *call) {
  static const char *const calls[] = {"create", "mkdir", "rename", "symlink", "link", "unlink",
                                      "rmdir", NULL};
  for (int at = 0; calls[at]; at++) if (!strcmp(call, calls[at])) return 1;
  return 0;
}

/* Describe a step as a line without its end. */
static int describe(char *line, size_t room, const char *call, const char *path) {
  char site[1024] = "";
  if (!control->exposed[0]) return snprintf(line, room, "%s\t%s", call, path);
  int kept = errno;
  if (__atomic_exchange_n(&control->stale, 0, __ATOMIC_SEQ_CST))
    control->names = names_now();
  site_of(site, sizeof site);
  errno = kept;
  return snprintf(line, room, "%s\t%s\t%s\t%lx", call, path, site, control->names);
}

/* Number a step. Gives 0 where it is none, -1 where it fails with errno, else what `after` takes:
 * 1 to go on, 2 to be killed after it, 3 to be killed in the middle of it. */
static int before(const char *call, const char *path) {
  long number = __atomic_add_fetch(&control->taken, 1, __ATOMIC_SEQ_CST);
  int is_server_step = !strcmp(call, "send");
  if (control->mode == COUNT) {
    char line[PATH_MAX + 2048];
    long length = describe(line, sizeof line, call, path) + 1;
    long at = __atomic_fetch_add(&control->used, length, __ATOMIC_SEQ_CST);
    line[length - 1] = '\n';
    if (at + length < control->room) memcpy(control->trace + at, line, length);
    if (changes_names(call)) control->stale = 1;
    return 1;
  }
  if (control->mode == ATTACK) {
    if (number != control->target && number != control->second) return 1;
    control->stale = 1;
    describe(control->struck, sizeof control->struck, call, path);
    be_attacked(__atomic_add_fetch(&control->fired, 1, __ATOMIC_SEQ_CST));
    return 1;
  }
  int is_it = number == control->target;
  if (control->mode == FAIL_ON && number > control->target && (control->code != ENOSPC || grows(call)))
    is_it = 1;
  if (!is_it) return 1;
  if (__atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST) == 0)
    snprintf(control->struck, sizeof control->struck, "%s\t%s", call, path);
  switch (control->mode) {
    case KILL_BEFORE: die(); return 1;
    case KILL_AFTER: return 2;
    case INTERRUPT: kill(getpgrp(), SIGTERM); return 1;
    case TEAR: return 3;
    default:
      errno = is_server_step ? ECONNRESET : control->code;
      return -1;
  }
}

static void after(int what) {
  if (what >= 2) die();
}

#define ON_PATH(call, folder, name) ({ char full_[PATH_MAX]; \
  is_on() && path_at(folder, name, full_) && is_watched(full_) ? before(call, full_) : 0; })
#define ON_FILE(call, descriptor) ({ char full_[PATH_MAX]; \
  is_on() && path_of(descriptor, full_) && is_watched(full_) ? before(call, full_) : 0; })
#define ON_ANY(call, descriptor) ({ char full_[PATH_MAX]; int what = 0; \
  if (is_on() && path_of(descriptor, full_)) { \
    if (is_watched(full_)) what = before(call, full_); \
    else if (!strncmp(full_, "socket:", 7) && is_server(descriptor)) what = before("send", "server"); \
  } what; })
#define READ(call, folder, name) (control && control->reads ? ON_PATH(call, folder, name) : 0)
#define DO(type, what, real) do { int step = (what); if (step < 0) return -1; \
  type result = (real); after(step); return result; } while (0)

#define OPENED(name, folder) do { \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); } \
  int step = 0; \
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT)) \
    step = ON_PATH(flags & O_CREAT ? "create" : flags & O_TRUNC ? "truncate" : "open", folder, path_); \
  else step = READ(flags & O_DIRECTORY ? "list" : "read", folder, path_); \
  if (step < 0) return -1; \
  int result = name; after(step); return result; } while (0)

int open(const char *path_, int flags, ...) { OPENED(NEXT(open)(path_, flags, mode), AT_FDCWD); }
int open64(const char *path_, int flags, ...) { OPENED(NEXT(open64)(path_, flags, mode), AT_FDCWD); }
int openat(int at, const char *path_, int flags, ...) { OPENED(NEXT(openat)(at, path_, flags, mode), at); }
int openat64(int at, const char *path_, int flags, ...) { OPENED(NEXT(openat64)(at, path_, flags, mode), at); }
int creat(const char *path, mode_t mode) { DO(int, ON_PATH("create", AT_FDCWD, path), NEXT(creat)(path, mode)); }
int creat64(const char *path, mode_t mode) { DO(int, ON_PATH("create", AT_FDCWD, path), NEXT(creat64)(path, mode)); }

extern int __open_2(const char *, int);
extern int __open64_2(const char *, int);
extern int __openat_2(int, const char *, int);
extern int __openat64_2(int, const char *, int);
#define OPENED_2(name, folder) do { int step = 0; \
  if ((flags & O_ACCMODE) != O_RDONLY) step = ON_PATH("open", folder, path_); \
  else step = READ(flags & O_DIRECTORY ? "list" : "read", folder, path_); \
  if (step < 0) return -1; \
  int result = name; after(step); return result; } while (0)
int __open_2(const char *path_, int flags) { OPENED_2(NEXT(__open_2)(path_, flags), AT_FDCWD); }
int __open64_2(const char *path_, int flags) { OPENED_2(NEXT(__open64_2)(path_, flags), AT_FDCWD); }
int __openat_2(int at, const char *path_, int flags) { OPENED_2(NEXT(__openat_2)(at, path_, flags), at); }
int __openat64_2(int at, const char *path_, int flags) { OPENED_2(NEXT(__openat64_2)(at, path_, flags), at); }

/* A torn write puts down the first half, and then the power goes. */
#define WRITTEN(what, size, real, half) do { int step = (what); \
  if (step < 0) return -1; \
  if (step == 3 && (size) > 1) { if (half) {} die(); } \
  ssize_t result = (real); after(step); return result; } while (0)

ssize_t write(int fd, const void *bytes, size_t size) {
  WRITTEN(ON_ANY("write", fd), size, NEXT(write)(fd, bytes, size), NEXT(write)(fd, bytes, size / 2));
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
  WRITTEN(ON_FILE("pwrite", fd), size, NEXT(pwrite)(fd, bytes, size, at), NEXT(pwrite)(fd, bytes, size / 2, at));
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
  WRITTEN(ON_FILE("pwrite", fd), size, NEXT(pwrite64)(fd, bytes, size, at), NEXT(pwrite64)(fd, bytes, size / 2, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) { DO(ssize_t, ON_ANY("write", fd), NEXT(writev)(fd, parts, count)); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { DO(ssize_t, ON_FILE("pwrite", fd), NEXT(pwritev)(fd, parts, count, at)); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { DO(ssize_t, ON_FILE("pwrite", fd), NEXT(pwritev64)(fd, parts, count, at)); }

ssize_t send(int fd, const void *bytes, size_t size, int flags) { DO(ssize_t, ON_ANY("send", fd), NEXT(send)(fd, bytes, size, flags)); }
ssize_t sendto(int fd, const void *bytes, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
  DO(ssize_t, ON_ANY("send", fd), NEXT(sendto)(fd, bytes, size, flags, to, length));
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) { DO(ssize_t, ON_ANY("send", fd), NEXT(sendmsg)(fd, message, flags)); }

ssize_t copy_file_range(int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags) {
  DO(ssize_t, ON_FILE("copy", fd), NEXT(copy_file_range)(from, at, fd, to, size, flags));
}
ssize_t sendfile(int fd, int from, off_t *at, size_t size) { DO(ssize_t, ON_FILE("copy", fd), NEXT(sendfile)(fd, from, at, size)); }
ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) { DO(ssize_t, ON_FILE("copy", fd), NEXT(sendfile64)(fd, from, at, size)); }

int rename(const char *from, const char *to) { DO(int, ON_PATH("rename", AT_FDCWD, to), NEXT(rename)(from, to)); }
int renameat(int at, const char *from, int to_at, const char *to) { DO(int, ON_PATH("rename", to_at, to), NEXT(renameat)(at, from, to_at, to)); }
int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags) {
  DO(int, ON_PATH("rename", to_at, to), NEXT(renameat2)(at, from, to_at, to, flags));
}
int unlink(const char *path) { DO(int, ON_PATH("unlink", AT_FDCWD, path), NEXT(unlink)(path)); }
int unlinkat(int at, const char *path, int flags) { DO(int, ON_PATH("unlink", at, path), NEXT(unlinkat)(at, path, flags)); }
int rmdir(const char *path) { DO(int, ON_PATH("rmdir", AT_FDCWD, path), NEXT(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { DO(int, ON_PATH("mkdir", AT_FDCWD, path), NEXT(mkdir)(path, mode)); }
int mkdirat(int at, const char *path, mode_t mode) { DO(int, ON_PATH("mkdir", at, path), NEXT(mkdirat)(at, path, mode)); }
int link(const char *from, const char *to) { DO(int, ON_PATH("link", AT_FDCWD, to), NEXT(link)(from, to)); }
int linkat(int at, const char *from, int to_at, const char *to, int flags) { DO(int, ON_PATH("link", to_at, to), NEXT(linkat)(at, from, to_at, to, flags)); }
int symlink(const char *text, const char *path) { DO(int, ON_PATH("symlink", AT_FDCWD, path), NEXT(symlink)(text, path)); }
int symlinkat(const char *text, int at, const char *path) { DO(int, ON_PATH("symlink", at, path), NEXT(symlinkat)(text, at, path)); }
int truncate(const char *path, off_t size) { DO(int, ON_PATH("truncate", AT_FDCWD, path), NEXT(truncate)(path, size)); }
int truncate64(const char *path, off64_t size) { DO(int, ON_PATH("truncate", AT_FDCWD, path), NEXT(truncate64)(path, size)); }
int ftruncate(int fd, off_t size) { DO(int, ON_FILE("truncate", fd), NEXT(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { DO(int, ON_FILE("truncate", fd), NEXT(ftruncate64)(fd, size)); }
int fallocate(int fd, int mode, off_t at, off_t size) { DO(int, ON_FILE("fallocate", fd), NEXT(fallocate)(fd, mode, at, size)); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) { DO(int, ON_FILE("fallocate", fd), NEXT(fallocate64)(fd, mode, at, size)); }
/* These two give the errno and do not set it. */
#define ALLOCATED(real) do { int step = ON_FILE("fallocate", fd); if (step < 0) return errno; \
  int result = real; after(step); return result; } while (0)
int posix_fallocate(int fd, off_t at, off_t size) { ALLOCATED(NEXT(posix_fallocate)(fd, at, size)); }
int posix_fallocate64(int fd, off64_t at, off64_t size) { ALLOCATED(NEXT(posix_fallocate64)(fd, at, size)); }
int fsync(int fd) { DO(int, ON_FILE("fsync", fd), NEXT(fsync)(fd)); }
int fdatasync(int fd) { DO(int, ON_FILE("fsync", fd), NEXT(fdatasync)(fd)); }
int syncfs(int fd) { DO(int, ON_FILE("fsync", fd), NEXT(syncfs)(fd)); }
int chmod(const char *path, mode_t mode) { DO(int, ON_PATH("chmod", AT_FDCWD, path), NEXT(chmod)(path, mode)); }
int fchmod(int fd, mode_t mode) { DO(int, ON_FILE("chmod", fd), NEXT(fchmod)(fd, mode)); }
int fchmodat(int at, const char *path, mode_t mode, int flags) { DO(int, ON_PATH("chmod", at, path), NEXT(fchmodat)(at, path, mode, flags)); }
int chown(const char *path, uid_t user, gid_t group) { DO(int, ON_PATH("chown", AT_FDCWD, path), NEXT(chown)(path, user, group)); }
int lchown(const char *path, uid_t user, gid_t group) { DO(int, ON_PATH("chown", AT_FDCWD, path), NEXT(lchown)(path, user, group)); }
int fchown(int fd, uid_t user, gid_t group) { DO(int, ON_FILE("chown", fd), NEXT(fchown)(fd, user, group)); }
int fchownat(int at, const char *path, uid_t user, gid_t group, int flags) { DO(int, ON_PATH("chown", at, path), NEXT(fchownat)(at, path, user, group, flags)); }
int utimensat(int at, const char *path, const struct timespec times[2], int flags) {
  if (!path) DO(int, ON_FILE("utimes", at), NEXT(utimensat)(at, path, times, flags));
  DO(int, ON_PATH("utimes", at, path), NEXT(utimensat)(at, path, times, flags));
}
int futimens(int fd, const struct timespec times[2]) { DO(int, ON_FILE("utimes", fd), NEXT(futimens)(fd, times)); }
int setxattr(const char *path, const char *name, const void *value, size_t size, int flags) { DO(int, ON_PATH("setxattr", AT_FDCWD, path), NEXT(setxattr)(path, name, value, size, flags)); }
int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags) { DO(int, ON_PATH("setxattr", AT_FDCWD, path), NEXT(lsetxattr)(path, name, value, size, flags)); }
int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags) { DO(int, ON_FILE("setxattr", fd), NEXT(fsetxattr)(fd, name, value, size, flags)); }
int removexattr(const char *path, const char *name) { DO(int, ON_PATH("setxattr", AT_FDCWD, path), NEXT(removexattr)(path, name)); }
int lremovexattr(const char *path, const char *name) { DO(int, ON_PATH("setxattr", AT_FDCWD, path), NEXT(lremovexattr)(path, name)); }
int fremovexattr(int fd, const char *name) { DO(int, ON_FILE("setxattr", fd), NEXT(fremovexattr)(fd, name)); }

/* Python calls openat2 through syscall(3). */
struct how { unsigned long long flags, mode, resolve; };
long syscall(long number, ...) {
  va_list rest;
  long word[6];
  va_start(rest, number);
  for (int at = 0; at < 6; at++) word[at] = va_arg(rest, long);
  va_end(rest);
  int step = 0;
#ifdef SYS_openat2
  if (number == SYS_openat2 && word[1] && word[2]) {
    unsigned long long flags = ((struct how *)word[2])->flags;
    const char *name = (const char *)word[1];
    if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT))
      step = ON_PATH(flags & O_CREAT ? "create" : flags & O_TRUNC ? "truncate" : "open", (int)word[0], name);
    else step = READ(flags & O_DIRECTORY ? "list" : "read", (int)word[0], name);
  }
#endif
  if (number == SYS_renameat2 && word[3])
    step = ON_PATH("rename", (int)word[2], (const char *)word[3]);
  if (step < 0) return -1;
  long result = NEXT(syscall)(number, word[0], word[1], word[2], word[3], word[4], word[5]);
  after(step);
  return result;
}

/* What only looks is a step where reads are: between a look and what follows, others can act. */
int stat(const char *path, struct stat *found) { DO(int, READ("stat", AT_FDCWD, path), NEXT(stat)(path, found)); }
int stat64(const char *path, struct stat64 *found) { DO(int, READ("stat", AT_FDCWD, path), NEXT(stat64)(path, found)); }
int lstat(const char *path, struct stat *found) { DO(int, READ("stat", AT_FDCWD, path), NEXT(lstat)(path, found)); }
int lstat64(const char *path, struct stat64 *found) { DO(int, READ("stat", AT_FDCWD, path), NEXT(lstat64)(path, found)); }
int fstatat(int at, const char *path, struct stat *found, int flags) { DO(int, READ("stat", at, path), NEXT(fstatat)(at, path, found, flags)); }
int fstatat64(int at, const char *path, struct stat64 *found, int flags) { DO(int, READ("stat", at, path), NEXT(fstatat64)(at, path, found, flags)); }
int statx(int at, const char *path, int flags, unsigned mask, struct statx *found) {
  DO(int, path[0] ? READ("stat", at, path) : 0, NEXT(statx)(at, path, flags, mask, found));
}
int access(const char *path, int mode) { DO(int, READ("access", AT_FDCWD, path), NEXT(access)(path, mode)); }
int faccessat(int at, const char *path, int mode, int flags) { DO(int, READ("access", at, path), NEXT(faccessat)(at, path, mode, flags)); }
ssize_t readlink(const char *path, char *text, size_t size) {
  /* path_at and path_of call it, for what is not watched */
  DO(ssize_t, strncmp(path, "/proc/", 6) ? READ("readlink", AT_FDCWD, path) : 0, NEXT(readlink)(path, text, size));
}
ssize_t readlinkat(int at, const char *path, char *text, size_t size) { DO(ssize_t, READ("readlink", at, path), NEXT(readlinkat)(at, path, text, size)); }
DIR *opendir(const char *path) {
  int step = READ("list", AT_FDCWD, path);
  if (step < 0) return NULL;
  return NEXT(opendir)(path);
}
