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
/* Where bytes of the disk lie in a file, all of them before its end. */
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
	const vs_room *rooms; /* of the target, whole units: more of them, behind what earlier stretches have left */
	uint64_t *places; /* gets a word for each unit: where it went, all ones where it is zeros and went nowhere */
	uint64_t base;    /* without `places`: where `start` lies; each unit then has a place of its own behind it */
	uint32_t piece_count, room_count;
} vs_stretch;
/* Of units (a power of two, 512 B to 1 GiB) only those are written that hold anything but zeros. NULL: errno. */
vs_mover *vs_mover_new(int target, uint64_t unit, uint32_t threads);
/* Waits for what is under way. */
void vs_mover_free(vs_mover *mover);
/* Returns at once; but for the rooms, what the stretch points to has to stay until vs_mover_wait() told of it. Two may be
 * under way, so that none waits for the other. -EINVAL: the stretch is not as said; -EBUSY: two are under way; -ENOMEM; or
 * what failed before. */
int vs_mover_start(vs_mover *mover, const vs_stretch *stretch);
/* When the oldest stretch is written (and on its way to the disk; fdatasync() makes it durable), or could not be: -errno, of
 * the first place of the disk that failed; -ENODATA: a file ends before its piece does; -ENOBUFS: the rooms are too small.
 * -ETIMEDOUT: not yet, after so many milliseconds; *reached: the bytes of the disk before it are read. */
int vs_mover_wait(vs_mover *mover, uint32_t milliseconds, uint64_t *reached);

/* cffi: end */

#endif
