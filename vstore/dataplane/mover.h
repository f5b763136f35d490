/*
 * mover.h - whole disks copied from file to file: the data plane's seam for vstore/transfer, beside dataplane.h.
 *
 * Numbers are bytes. A result below 0 is -errno. What stands between the two cffi lines is what Python sees.
 */
#ifndef VSTORE_MOVER_H
#define VSTORE_MOVER_H

#include <stdint.h>

/* cffi: begin */

typedef struct vs_mover vs_mover;
/* Where bytes of the disk lie in a file; behind the file's end they are zeros. */
typedef struct {
	uint64_t start, length, offset;
	int64_t fd;
} vs_piece;
typedef struct {
	uint64_t offset, length;
} vs_room;
/* Bytes start (whole units) to end of the disk; what is in no piece is zeros. Pieces are in the order of the disk, and do not
 * overlap. */
typedef struct {
	uint64_t start, end;
	const vs_piece *pieces;
	const vs_room *rooms; /* of the target, whole units; they are used up from the first on */
	uint64_t *places; /* gets a word for each unit: where it went, all ones where it is zeros and went nowhere */
	uint32_t piece_count;
	uint32_t room_count; /* without `places`: 1, as long as the stretch, and each unit has its own place in it */
} vs_stretch;
/* Of units (a power of two, 512 B to 1 GiB) only those are written that hold anything but zeros. NULL: errno. */
vs_mover *vs_mover_new(int target, uint64_t unit, uint32_t threads);
/* Waits for what is under way. */
void vs_mover_free(vs_mover *mover);
/* Returns at once; what the stretch points to has to stay until vs_mover_wait(). -EINVAL: the stretch is not as said;
 * -EBUSY: another is under way; or what failed before. */
int vs_mover_start(vs_mover *mover, const vs_stretch *stretch);
/* When the stretch is written (and on its way to the disk; fdatasync() makes it durable), or could not be: -errno, of the
 * first place of the disk that failed; -ENOBUFS: the rooms are too small. -ETIMEDOUT: not yet, after so many milliseconds;
 * *reached: the bytes of the disk before it are read. */
int vs_mover_wait(vs_mover *mover, uint32_t milliseconds, uint64_t *reached);

/* cffi: end */

#endif
