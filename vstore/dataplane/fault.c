/*
 * fault.c - guest memory and image files belong to others, who may cut them short while we have them mapped. The access
 * then raises SIGBUS; a guarded access becomes an error of that one ring or read instead of the end of the process.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

_Thread_local sigjmp_buf *vs_fault_guard;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (vs_fault_guard)
		siglongjmp(*vs_fault_guard, 1);
	/* Not ours: let it happen again with the default action, so that the process dies as it should. */
	signal(number, SIG_DFL);
}

static void install(void)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigemptyset(&action.sa_mask);
	sigaction(SIGBUS, &action, NULL);
}

int fault_install(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	return -pthread_once(&once, install);
}

int fault_safe_copy(void *to, const void *from, size_t length)
{
	sigjmp_buf here;
	sigjmp_buf *outer = vs_fault_guard;

	if (sigsetjmp(here, 0)) {
		vs_fault_guard = outer;
		return -EFAULT;
	}
	vs_fault_guard = &here;
	memcpy(to, from, length);
	vs_fault_guard = outer;
	return 0;
}
