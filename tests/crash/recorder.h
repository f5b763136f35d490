/*
 * recorder.h - what recorder.c and faults.c share. All of it is called under the recorder's lock, or before there are
 * threads.
 */
#ifndef RECORDER_H
#define RECORDER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { FILE_SEEN = 1, WRITE, TRUNCATE, PUNCH, ZERO, ALLOCATE, BARRIER, MARK, FAILURE, READ }; /* recording.py's Kind */

/* Appends a record to the log, with the first `length` bytes of `data` if there is any. */
void note(uint32_t kind, int file, uint64_t offset, uint64_t length, uint32_t flags, const struct iovec *data,
	  int count);
_Noreturn void die(const char *why);
/* Begins to note what happens in the folder that the environment names, if it names one. */
void recorder_begin(void);

/* Reads the environment. */
void faults_begin(void);
/* Whether this call on a file, -1 for one that is not watched, is one of those that fail; errno says how. */
bool fails(uint32_t kind, int file);
/* Whether reads are what fails. */
bool fails_reads(void);
/* How much of so many bytes is done where half of them are, in whole sectors. */
size_t half_of(size_t length);
/* Does the first half of a write. */
ssize_t half_written(int fd, const struct iovec *iov, int count, int64_t offset, int flags);

#endif
