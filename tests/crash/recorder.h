/*
 * recorder.h - what recorder.c and faults.c share. All of it is called under the recorder's lock, or before there are
 * threads.
 */
#ifndef RECORDER_H
#define RECORDER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { FILE_SEEN = 1, WRITE, TRUNCATE, PUNCH, ZERO, ALLOCATE, BARRIER, MARK, FAILURE }; /* recording.py's Kind */

/* Appends a record to the log, with the first `length` bytes of `data` if there is any. */
void note(uint32_t kind, int file, uint64_t offset, uint64_t length, uint32_t flags, const struct iovec *data,
	  int count);
_Noreturn void die(const char *why);

/* Reads the environment. */
void faults_begin(void);
/* Whether this call on a file, -1 for one that is not watched, is one of those that fail; errno says how. */
bool fails(uint32_t kind, int file);
/* Does the first half of a write, in whole sectors. */
ssize_t half_written(int fd, const struct iovec *iov, int count, int64_t offset, int flags);

#endif
