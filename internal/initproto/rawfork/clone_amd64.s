#include "textflag.h"

// func cloneVM(trap, a1, a2, a3 uintptr, c *child) (pid, errno uintptr)
//
// The child starts behind SYSCALL on the stack it was given, with nothing on it: it finds c in a register, which the kernel
// keeps, and never returns.
TEXT ·cloneVM(SB), NOSPLIT, $16-56
	MOVQ a1+8(FP), DI
	MOVQ a2+16(FP), SI
	MOVQ a3+24(FP), DX
	MOVQ c+32(FP), R12
	XORL R10, R10
	XORL R8, R8
	MOVQ trap+0(FP), AX
	SYSCALL
	TESTQ AX, AX
	JZ   child
	CMPQ AX, $0xfffffffffffff001
	JLS  parent
	NEGQ AX
	MOVQ $-1, pid+40(FP)
	MOVQ AX, errno+48(FP)
	RET
parent:
	MOVQ AX, pid+40(FP)
	MOVQ $0, errno+48(FP)
	RET
child:
	XORL BP, BP
	MOVQ R12, 0(SP)
	CALL ·run(SB)
	INT  $3
