#include "textflag.h"

// childHandler is a signal handler (rt_sigaction(2)): it makes the eventfd in childWake readable and returns. It may run
// on any thread, at any time, so it touches nothing else.
TEXT childHandler<>(SB), NOSPLIT|NOFRAME, $0
	MOVL ·childWake(SB), DI
	LEAQ ·childOne(SB), SI
	MOVL $8, DX
	MOVL $1, AX // write
	SYSCALL
	RET

TEXT childReturn<>(SB), NOSPLIT|NOFRAME, $0
	MOVL $15, AX // rt_sigreturn
	SYSCALL
	INT  $3

GLOBL ·childHandlerAddr(SB), RODATA, $8
DATA ·childHandlerAddr(SB)/8, $childHandler<>(SB)
GLOBL ·childReturnAddr(SB), RODATA, $8
DATA ·childReturnAddr(SB)/8, $childReturn<>(SB)
